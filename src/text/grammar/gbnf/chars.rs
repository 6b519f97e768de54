//! Sets of characters.

use std::fmt::Write;

/// Ranges of code points, both ends included, in rising order and apart from each other; no surrogates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chars(Vec<(u32, u32)>);

/// The characters that Unicode has.
const ALL: [(u32, u32); 2] = [(0, 0xD7FF), (0xE000, 0x10_FFFF)];

impl Chars {
    pub fn all() -> Chars {
        Chars(ALL.to_vec())
    }

    pub fn one(c: char) -> Chars {
        Chars(vec![(c.into(), c.into())])
    }

    /// Of ranges in any order.
    pub fn of(mut ranges: Vec<(u32, u32)>) -> Chars {
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (low, high) in ranges {
            match joined.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => joined.push((low, high)),
            }
        }
        Chars(joined).and(&Chars::all())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All other characters.
    pub fn not(&self) -> Chars {
        let (mut rest, mut next) = (Vec::new(), 0);
        for &(low, high) in &self.0 {
            if low > next {
                rest.push((next, low - 1));
            }
            next = high + 1;
        }
        if next <= ALL[1].1 {
            rest.push((next, ALL[1].1));
        }
        Chars(rest).and(&Chars::all())
    }

    pub fn and(&self, other: &Chars) -> Chars {
        let (mut both, mut i, mut j) = (Vec::new(), 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            let (low, high) = (a.0.max(b.0), a.1.min(b.1));
            if low <= high {
                both.push((low, high));
            }
            if a.1 < b.1 { i += 1 } else { j += 1 }
        }
        Chars(both)
    }

    pub fn meets(&self, other: &Chars) -> bool {
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            if a.0.max(b.0) <= a.1.min(b.1) {
                return true;
            }
            if a.1 < b.1 { i += 1 } else { j += 1 }
        }
        false
    }

    /// Takes others in; whether there was one that it did not have.
    pub fn add(&mut self, other: &Chars) -> bool {
        let joined = Chars::of([&self.0[..], &other.0].concat());
        let grown = joined != *self;
        *self = joined;
        grown
    }

    /// As a class of a regular expression.
    pub fn write(&self, out: &mut String) {
        out.push('[');
        for &(low, high) in &self.0 {
            let _ = write!(out, r"\x{{{low:x}}}");
            if high > low {
                let _ = write!(out, r"-\x{{{high:x}}}");
            }
        }
        out.push(']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_what_their_characters_say() {
        let of =
            |ranges: &[(char, char)]| Chars::of(ranges.iter().map(|r| (r.0 as u32, r.1 as u32)).collect());
        let set = of(&[('x', 'z'), ('a', 'f'), ('d', 'h'), ('i', 'i')]);
        assert_eq!(set, Chars(vec![(97, 105), (120, 122)]));
        assert_eq!(set.not().not(), set);
        assert!(set.not().and(&set).is_empty() && !set.not().meets(&set));
        assert_eq!(Chars::default().not(), Chars::all());
        assert!(Chars::all().not().is_empty());
        assert_eq!(of(&[('a', 'm')]).and(&of(&[('c', 'd'), ('k', 'z')])), of(&[('c', 'd'), ('k', 'm')]));
        let mut grown = Chars::one('a');
        assert!(grown.add(&Chars::one('b')) && !grown.add(&Chars::one('a')));
        let mut text = String::new();
        grown.add(&Chars::one(']'));
        grown.write(&mut text);
        assert_eq!(text, r"[\x{5d}\x{61}-\x{62}]");
        // Surrogates are no characters.
        assert_eq!(Chars::of(vec![(0xD000, 0xE001)]), Chars(vec![(0xD000, 0xD7FF), (0xE000, 0xE001)]));
    }
}
