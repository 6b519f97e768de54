//! GBNF means what llama.cpp means by it: held to a plain recogniser of its characters.

use std::collections::{BTreeMap, BTreeSet};

use super::super::tests::{END, Stands, check, factory};
use super::super::{Constraint, Grammar};
use super::parse::{Expr, parse};
use super::*;
use Stands::{Begun, Whole, WrongAt};

fn gbnf(text: &str, texts: &[(&str, Stands)]) {
    check(&Grammar::gbnf(text).unwrap_or_else(|e| panic!("{text}: {e}")), texts);
}

const JSON: &str = r#"
# JSON, with white space where it may be
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn json_is_json() {
    gbnf(
        JSON,
        &[
            (r#"{"a": [1, -2.5e3, true, null], "b\n\u00e9": {"ü€": []}}"#, Whole),
            ("{\n    \"a\":0\n}", Whole),
            (r#"{"a": [1"#, Begun),
            (r#"{"a": 01"#, WrongAt(7)),
            (r#"{"a"  "#, WrongAt(5)),
            (r#"{"a\x"#, WrongAt(4)),
            ("[", WrongAt(0)),
        ],
    );
}

#[test]
fn what_follows_may_be_what_a_lexeme_would_take() {
    let sums = "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] term)*\n\
                term ::= ident | num | \"(\" ws expr \")\" ws\nident ::= [a-z] [a-z0-9_]* ws\n\
                num ::= [0-9]+ ws\nws ::= [ \\t\\n]*";
    gbnf(
        sums,
        &[
            ("(a+12 )*b = c\n", Whole),
            ("a=1\n \n\nb=2\n", Whole),
            ("(a+ ", WrongAt(3)),
            ("a=1", Begun),
            ("a=\n\n(1\n)\n", Whole),
            ("a=1\n=", WrongAt(4)),
        ],
    );
    let end = "root ::= \"(\" root \")\" | [a-z]+ \"end\" | [a-z]* \"!\"";
    gbnf(
        end,
        &[("((xend))", Whole), ("endend", Whole), ("end", Begun), ("(end!)", Whole), ("e1", WrongAt(1))],
    );
}

#[test]
fn literals_classes_and_comments_are_read_as_llama_cpp_does() {
    gbnf(
        "root ::= \"\\x41\\u00e9\\U0001F600\\t\\\"\\\\\" [\\]\\[a-] # \"the end\"\n",
        &[
            ("Aé😀\t\"\\]", Whole),
            ("Aé😀\t\"\\-", Whole),
            ("Aé😀\t\"\\[", Whole),
            ("Aé😀\t\"\\b", WrongAt(10)),
        ],
    );
    let texts = [("xÿ", Whole), ("\n", Whole), ("x\n", WrongAt(1)), ("€€", Whole)];
    gbnf("root ::= [^a-cé\\n]{2} | .", &texts);
    gbnf(
        "a-b ::= \"x\"{2,3} |\n  \"y\"{2,}\r\nroot ::= (a-b\n | c_d) a-b?\nc_d ::= \"\"",
        &[("", Whole), ("xxx", Whole), ("xxxyyyyy", Whole), ("xxxxxxx", WrongAt(6)), ("y", Begun)],
    );
    // The whole literal is repeated; the last of two rules counts.
    gbnf("root ::= \"no\"\nroot ::= \"ab\"+", &[("abab", Whole), ("abb", WrongAt(2))]);
}

/// The places where an expression may end that begins at one; no rule may begin with itself.
fn ends(rules: &[Expr], expr: &Expr, text: &[char], at: usize) -> BTreeSet<usize> {
    let from = |starts: BTreeSet<usize>, expr: &Expr| -> BTreeSet<usize> {
        starts.into_iter().flat_map(|at| ends(rules, expr, text, at)).collect()
    };
    match expr {
        Expr::Chars(set) => {
            let there = text.get(at).is_some_and(|&c| set.meets(&chars::Chars::one(c)));
            there.then_some(at + 1).into_iter().collect()
        }
        Expr::Rule(rule) => ends(rules, &rules[*rule], text, at),
        Expr::Seq(list) => list.iter().fold(BTreeSet::from([at]), from),
        Expr::Alt(list) => list.iter().flat_map(|e| ends(rules, e, text, at)).collect(),
        Expr::Repeat(inner, least, most) => {
            let (mut found, mut now) = (BTreeSet::new(), BTreeSet::from([at]));
            for count in 0..=most.unwrap_or(u32::MAX) {
                if count >= *least {
                    let before = found.len();
                    found.extend(&now);
                    if found.len() == before {
                        break;
                    }
                }
                now = from(now, inner);
            }
            found
        }
    }
}

/// Walks all texts of an alphabet that a constraint allows, as far as they are known.
fn compare(constraint: Constraint, prefix: &str, alphabet: &str, len: usize, all: &BTreeMap<String, bool>) {
    let mut constraint = constraint;
    let mask = constraint.mask().unwrap_or_else(|e| panic!("{prefix:?}: {e}")).clone();
    assert_eq!(mask.allows(END), all[prefix], "whether {prefix:?} may end");
    for c in alphabet.chars().filter(|_| prefix.chars().count() < len) {
        let next = format!("{prefix}{c}");
        if mask.allows(c as u32) {
            let mut other = constraint.clone();
            other.accept(c as u32).expect("it is allowed");
            compare(other, &next, alphabet, len, all);
        } else {
            let wrong = all.iter().find(|(text, matches)| **matches && text.starts_with(&next));
            assert_eq!(wrong, None, "after {prefix:?}");
        }
    }
}

/// Every text over an alphabet of a few characters stands to the constraint as to the rules.
#[test]
fn the_texts_are_those_of_the_rules() {
    let grammars = [
        ("root ::= \"(\" root \")\" | \"a\"+ \"ab\" | ([ab] \"b\")*", "ab()", 5),
        ("root ::= \"a\" root \"b\" root | \"ab\" | \"\"", "abc", 6),
        ("root ::= word (\" \" word)* \"b\"\nword ::= [ab]+ | \"(\" root \")\"", "ab (", 5),
        ("root ::= ws \"a\" ws | \"(\" ws root ws \")\" ws\nws ::= ([ b] ws)?", "ab( ", 5),
        ("root ::= (\"a\"? \"b\"?){2,3} \"c\" root? | \"ca\" root \"c\"", "abc", 6),
        ("root ::= \"a\"{2} | \"a\"{1,3} \"b\"{2,} | \"(\" root{2} \")\"", "ab()", 5),
        ("root ::= x | y\nx ::= \"a\" x \"a\" | \"b\"\ny ::= \"a\" y | \"ab\" | [^ab]{1,2} x*", "abc", 6),
        ("root ::= [ab]* \"a\" [ab]{2}", "ab", 7),
        ("root ::= (((\"a\" | root2){0,2} \"b\")?){0,2}\nroot2 ::= \"(\" root2* \")\"", "ab()", 5),
    ];
    for (text, alphabet, len) in grammars {
        let rules = parse(text).expect("a grammar");
        let mut all = BTreeMap::from([(String::new(), false)]);
        for _ in 0..len {
            let longer: Vec<String> =
                all.keys().flat_map(|text| alphabet.chars().map(move |c| format!("{text}{c}"))).collect();
            all.extend(longer.into_iter().map(|text| (text, false)));
        }
        for (text, matches) in &mut all {
            let chars: Vec<char> = text.chars().collect();
            *matches = ends(&rules, &rules[0], &chars, 0).contains(&chars.len());
        }
        assert!(all.values().filter(|&&matches| matches).count() > 5, "{text}: hardly a text");
        let constraint =
            factory().constraint(&Grammar::gbnf(text).expect("a grammar")).expect("a constraint");
        compare(constraint, "", alphabet, len, &all);
    }
}

/// Only what has to be is taken apart.
#[test]
fn lexemes_are_as_large_as_is_safe() {
    let lexemes = |text: &str| split::split(&parse(text).expect("a grammar")).expect("lexemes").lexemes.len();
    // The whole of what has no recursion, or only at its ends.
    assert_eq!(lexemes("root ::= a \"b\" | ws\na ::= [x-z]+ \"end\"\nws ::= (\" \" ws)?"), 1);
    // Brackets with their space, values, the first key with its colon; apart from their space the comma, as
    // lists go on after it with other things than objects, and the keys after the first and their colons.
    assert_eq!(lexemes(JSON), 10);
    // An identifier is one where its space is not.
    let sums =
        "root ::= (sum \"\\n\")+\nsum ::= name ([-+] name)* | \"(\" sum \")\"\nname ::= [a-z]+ [ \\n]*";
    assert_eq!(lexemes(sums), 6);
}

/// The comparison above sees lexemes that take too much.
#[test]
fn a_lexeme_that_takes_too_much_is_noticed() {
    let lark = "start: L0 L1 | \"(\" start \")\"\nL0: /a+/\nL1: /ab/";
    let constraint = factory().constraint(&Grammar::lark(lark).expect("a text")).expect("a constraint");
    let texts =
        ["", "a", "b", "aa", "ab", "ba", "bb", "aaa", "aab", "aba", "abb", "baa", "bab", "bba", "bbb"];
    let all: BTreeMap<String, bool> = texts.map(|text| (text.to_owned(), text == "aab")).into();
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        compare(constraint, "", "ab", 3, &all);
    }));
    let said = unwound.expect_err("it is noticed");
    let said = said.downcast_ref::<String>().map(String::as_str).unwrap_or_default();
    assert!(said.contains("after \"aa\""), "{said}");
}

#[test]
fn what_is_no_gbnf_is_refused_with_its_place() {
    let refused = |text: &str, wanted: &str| {
        let error = to_lark(text).expect_err(text).to_string();
        assert_eq!(error, format!("the GBNF grammar cannot be used: {wanted}"));
    };
    refused("", "the rule \"root\" is not defined");
    refused("root ::= a\n", "the rule \"a\" is not defined");
    refused("root ::= \"a", "the text ends too early (line 1, column 12)");
    refused("root ::= \"a\"\n b = c", "\"::=\" is expected (line 2, column 4)");
    refused("root ::= <think> \"a\"", "tokens (<name>, <[id]>, !<..>) are not supported (line 1, column 10)");
    refused("root ::= !<[7]>", "tokens (<name>, <[id]>, !<..>) are not supported (line 1, column 10)");
    refused("root ::= * \"a\"", "there is nothing to repeat (line 1, column 11)");
    refused("root ::= \"a\"{3,2}", "a repetition ends before it begins (line 1, column 18)");
    refused("root ::= \"a\"{2001}", "a number up to 2000 is expected (line 1, column 14)");
    refused("root ::= [z-a]", "a range of characters ends before it begins (line 1, column 14)");
    refused("root ::= []", "a class that no character is of (line 1, column 12)");
    refused("root ::= \"\\q\"", "the escape \\q is not known (line 1, column 13)");
    refused("root ::= \"\\ud800\"", "a surrogate is no character (line 1, column 17)");
    refused("root ::= (\"a\"", "\")\" is expected (line 1, column 14)");
    refused("root ::= \"a\" )", "the rule goes on with what is not of GBNF (line 1, column 14)");
    refused("root ::= \"a\" root", "it has a rule that no text of an end matches");
    assert!(looks_like("# x\n  root  ::= \"a\"") && !looks_like("start: root\nroot: \"::=\""));
}
