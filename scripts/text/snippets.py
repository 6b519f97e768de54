"""Expressions and tags, each a template of its own: what templates use of Python's Jinja.

Left out, for `minijinja` has no way to them: `%` between texts, a sign `+` before a number, `varargs` and
`kwargs` in a macro, `d.items` without a call, `self`, and what Python's errors forbid (comparing none with a
number, a loop over none), which renders here.
"""

CONTEXT = {
    "d": {"a": 1, "b": [1, 2.0, True, None, "x'y", 'q"'], "items": 3},
    "n": None, "t": True, "f": False, "s": "  Hé llo\n", "l": ["a", "b", "c", "d"], "e": {},
    "x": 1.5, "big": 12345678901234567890, "fl": 1e20, "sm": 1e-7,
    "m": [{"role": "user", "content": "hi"},
          {"role": "assistant", "content": "yo", "tool_calls": [{"id": "1"}]}],
}

NUMBERS = [
    "{{ t }} {{ f }} {{ n }} {{ x }} {{ fl }} {{ sm }} {{ big }} {{ 1.0 }} {{ 10**20 }}",
    "{{ [1.0, 2.5e-5, 1e16, 1e15, 123456789.123, 0.1, 1e22, 100.0, -0.0, 0.0001, 0.00001] }}",
    "{{ 7 // 2 }} {{ 7 / 2 }} {{ 8 / 2 }} {{ 7 % 3 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 3 }}",
    "{{ 0x10 }} {{ 1_000 }} {{ 0b11 }} {{ 1e3 }}",
    "{{ 1 + 1.5 }} {{ true + 1 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }}",
    "{{ 'a' < 'b' }} {{ 1 < 2 < 3 }} {{ -1 }} {{ - x }}",
    "{{ 3.5|round }} {{ 2.5|round }} {{ -3|abs }}",
    "{{ 3|string + 'a' }} {{ sm|string }} {{ [1,2]|sum }} {{ l|length > 3 and l[0] == 'a' }}",
]

TEXTS_OF_VALUES = [
    "{{ d }}",
    "{{ l }}",
    "{{ d|string }}",
    "{{ t|string }} {{ n|string }} {{ fl|string }}",
    "{{ 'a' ~ t ~ n ~ d }}",
    "{{ (1,2) }} {{ (1,) }} {{ () }}",
    "{{ [t, n, 1.0, 'a'] }} {{ {'a': n, 'b': sm} }}",
    "{{ [\"it's\", 'q\"', 'both\\'\"', 'new\\n', 'é', '\\\\', '\\t', '🙂'] }}",
    "{{ True }} {{ False }} {{ None }}",
    "{{ [n,1,true]|join(',') }}",
    "{{ 'x' ~ [n, true] }}",
    "{{ d.b|join }}",
    "{{ d.items()|list }} {{ d.keys()|list }} {{ d.values()|list }}",
    "{{ dict(a=1,b=2) }}",
    "{% set x = dict(d, c=4) %}{{ x }}",
    "{{ [d, [d]]|string|length }}",
]

JSON = [
    "{{ d|tojson }}",
    "{{ d|tojson(indent=2) }}",
    "{{ d|tojson(ensure_ascii=True) }}",
    "{{ d|tojson(separators=(',',':')) }}",
    "{{ d|tojson(sort_keys=True) }}",
    "{{ e|tojson(indent=2) }} {{ []|tojson(indent=4) }} {{ {'a': {}, 'b': []}|tojson(indent=1) }}",
    "{{ x|tojson }} {{ fl|tojson }} {{ sm|tojson }} {{ 's'|tojson }} {{ (1,2)|tojson }} {{ n|tojson }}",
    "{{ {1: 2, none: 3, 1.5: 1, 'a': 0}|tojson }}",
    "{{ 'é'|tojson(ensure_ascii=true) }} {{ '🙂'|tojson(ensure_ascii=true) }}",
    "{{ '\\x7f'|tojson(ensure_ascii=true) }}",
    "{{ '\\u2028 \\x7f \\x1f \\b\\f /<>&\\'\"\\\\'|tojson }}",
    "{{ {'b':1,'a':{'d':1,'c':2}}|tojson(sort_keys=true, indent=1) }}",
    "{{ d|tojson(indent='  ') }}",
    "{{ d|tojson(indent=0) }}",
    "{{ d|tojson(indent=none) }}",
    "{{ d|tojson(true, 2) }}",
    "{{ d|tojson(false, none, (';', '=')) }}",
    "{{ d|tojson(indent=2, separators=(',', ':')) }}",
    "{{ (d|tojson)[:-1] }}",
    "{{ l|tojson|length }}",
    "{{ [1]|tojson ~ 'a' }}",
    "{{ m|tojson }}",
    "{{ m[1].tool_calls|tojson|string }}",
    "{{ big|tojson }} {{ t|tojson }}",
]

SLICES = [
    "{{ l[::-1] }}",
    "{{ l[1:] }} {{ l[:-1] }} {{ l[-2:] }} {{ l[::2] }} {{ l[3:0:-1] }} {{ s[::-1] }} {{ s[-3:] }}",
    "{{ l[-1] }} {{ s[0] }} {{ s[-2] }}",
    "{{ m[-1].tool_calls[0]['id'] }}",
    "{{ [1,2,3][1:]|length }} {{ 'abc'[1:] }} {{ ('a','b')[0] }} {{ {'a':{'b':1}}.a.b }}",
    "{{ l[10] is defined }} {{ l[10] }} {{ 'abc'[10] is defined }}",
    "{% for x in m[::-1] %}{{ x.role }}{{ loop.index0 }} {% endfor %}",
]

METHODS = [
    "{{ s.strip() }} {{ s.lstrip() }} {{ s.rstrip() }} {{ s.strip('\\n') }} {{ s.upper() }}",
    "{{ s.title() }} {{ s.capitalize() }} {{ s.lower() }} {{ s.strip(' H') }}",
    "{{ s.replace('l','L') }} {{ s.replace('l','L',1) }} {{ s.split() }} {{ s.split('l') }}",
    "{{ s.split(' ', 1) }} {{ 'a\\nb'.splitlines() }}",
    "{{ s.rsplit('l',1) }} {{ 'a,b,c'.rsplit(',',1)[0] }} {{ 'a b  c '.rsplit() }}",
    "{{ 'a b  c '.rsplit(none, 1) }} {{ ' a b'.rsplit(none, 5) }} {{ 'a,b'.rsplit(',') }}",
    "{{ 'a'.rsplit(',', 0) }}",
    "{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x','a')) }} {{ 'abc'.endswith('c') }}",
    "{{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ 'abcb'.rfind('b') }} {{ 'abc'.count('c') }}",
    "{{ 'a'.isdigit() }} {{ 'x'.isalpha() }} {{ '1'.isdigit() }} {{ 'A'.isupper() }}",
    "{{ 'a'.islower() }} {{ ' '.isspace() }} {{ 'a1'.isalnum() }}",
    "{{ '-'.join(l) }} {{ ''.join(l) }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }}",
    "{{ 'abc'.removeprefix('z') }}",
    "{{ 'a b c'.partition(' ') }} {{ 'a b c'.rpartition(' ') }} {{ 'a'.partition(' ') }}",
    "{{ 'a'.rpartition(' ') }} {{ 'abc'.partition('b')[0] }}",
    "{{ '{} {x}'.format(1, x=2) }} {{ '%s'|format('q') }}",
    "{{ d.get('a') }} {{ d.get('zz') }} {{ d.get('zz', 5) }} {{ d.copy() }} {{ l.copy() }}",
    "{{ l.count('b') }}",
    "{% for k, v in d.items() %}{{k}}={{v}};{% endfor %}",
    "{% for k, v in d|items %}{{k}};{% endfor %}",
    "{% for k in d %}{{k}}{% endfor %}",
    "{{ m[0].get('tool_calls') }} {{ m[1].get('tool_calls', []) | length }}",
    "{{ m[0]['content'].strip() | trim + 'x' }}",
]

FILTERS = [
    "{{ s|trim }} {{ s|upper }} {{ s|lower }} {{ s|title }} {{ s|capitalize }} {{ s|replace('l','L') }}",
    "{{ s|replace('l','L',1) }} {{ s|length }} {{ s|trim('\\n') }}",
    ("{{ 'a\\nb\\n\\nc'|indent(2) }} {{ 'a\\nb'|indent(2, true) }}"
     " {{ 'a\\nb\\n\\nc'|indent(2, blank=true) }}"),
    "{{ 'a\\nb'|indent(width=4, first=True) }}",
    "{{ '<b>'|safe }} {{ 'abc'|list }} {{ 'abc'|reverse }} {{ 'a'|string }}",
    "{{ 'abc'|first }} {{ 'a<b'|e }}",
    "{{ l|first }} {{ l|last }} {{ l|join('-') }} {{ l|reverse|list }} {{ l|sort }} {{ l|unique|list }}",
    "{{ l|min }} {{l|max}}",
    "{{ l|batch(2)|list }} {{ l|slice(2)|list }} {{ l|map('upper')|list }}",
    "{{ l|select('equalto','a')|list }} {{ l|reject('in',['a'])|list }}",
    "{{ m|selectattr('role','equalto','user')|list }}",
    "{{ m|selectattr('tool_calls','defined')|list|length }}",
    "{{ m|rejectattr('role','equalto','user')|map(attribute='content')|list }}",
    "{{ m|map(attribute='role')|join(', ') }}",
    "{{ m|selectattr('role','in',['user'])|list|length }} {{ (m|last).role }}",
    "{% for k, v in {16384:1,0:2,512:3}|dictsort %}{{k}}:{{v}},{% endfor %}",
    "{% for k, v in {'b':1,'A':2,'a':3}|dictsort %}{{k}}{% endfor %}",
    "{{ u|default('q') }} {{ ''|default('q', true) }} {{ n|default('q') }} {{ n|default('q', true)}}",
    "{{ range(3)|list }} {{ range(2,8,3)|list }} {{ l + ['z'] }} {{ l * 2 }} {{ 'ab' * 3 }}",
    "{{ [[1,2],[3]]|sum(start=[]) }}",
    "{{ u|length }} {{ u|trim }}| {{ u|list }} {{ u|join(',') }}|",
    "{{ 'x'|int }} {{ 'x'|int(7) }} {{ '42'|int + 1 }} {{ ' 42.9 '|int }} {{ [1]|int }} {{ n|int(5) }}",
    "{{ '0x1F'|int(0, 16) }} {{ 'z'|int(default=2, base=36) }} {{ 'inf'|int(3) }} {{ '1e3'|int }}",
]

TESTS = [
    "{{ u is defined }} {{ u is undefined }} {{ n is none }} {{ d is mapping }} {{ l is sequence }}",
    "{{ s is string }} {{ d is iterable }} {{ s is iterable }} {{ 1 is number }} {{ 1 is integer }}",
    "{{ 1.0 is float }}",
    "{{ t is boolean }} {{ t is true }} {{ f is false }} {{ l is iterable }} {{ s is sequence }}",
    "{{ d is sequence }} {{ 1 is sequence }} {{ n is iterable }} {{ u is none }} {{ u is string }}",
    "{{ u is mapping }}",
    "{{ 4 is divisibleby 2 }} {{ 1 is odd }} {{ 1 is even }} {{ 'a' is lower }} {{ 'a' is in l }}",
    "{{ 1 is eq 1 }} {{ 1 is equalto 1 }} {{ 1 is lt 2 }} {{ x is float }} {{ big is integer }}",
    "{{ 'b' in l }} {{ 'a' in d }} {{ 'x' not in l }} {{ 'l' in s }} {{ 'a' in u }}",
    "{{ u }} {{ d.zz }} {{ d.zz is defined }} {{ d['zz'] is none }} {{ n.foo is defined }}",
    "{{ s.foo is defined }}",
    "{{ u == none }} {{ u == '' }} {{ not u }} {{ u or 'z' }} {{ true and none }} {{ 0 or [] }}",
    "{{ 'a' and 'b' }} {{ none or 'c' }}",
    "{{ 1 if false }} {{ (1 if false) is defined }} {{ 'a' if u else 'b' if n else 'c' }}",
    "{{ '' if n is none else n }}",
    "{{ m[0] == m[0] }} {{ m[0] != m[1] }} {{ (1,2) is sequence }} {{ [1] == [1] }}",
]

TAGS = [
    ("{% set ns = namespace(x=[], y=0) %}{% for i in l %}{% set ns.x = ns.x + [i] %}"
     "{% set ns.y = ns.y + 1 %}{% endfor %}{{ ns.x }} {{ ns.y }}"),
    "{% set ns = namespace() %}{{ ns.foo is defined }}{% set ns.foo = 1 %}{{ ns.foo }}",
    "{% macro f(a, b=2) %}{{a}}{{b}}{% endmacro %}{{ f(1) }} {{ f(1, b=3) }} {{ f() }}",
    "{% macro f(a) %}{{a}}{{later}}{% endmacro %}{% set later = 'L' %}{{ f(1) }}",
    "{% macro f(a) %}{{ g(a) }}{% endmacro %}{% macro g(a) %}[{{a}}]{% endmacro %}{{ f(1) }}",
    ("{% macro f(a) %}{% for x in a %}{{ f(x) if x is iterable and x is not string else x }}{% endfor %}"
     "{% endmacro %}{{ f([1,[2,[3]]]) }}"),
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}x{% endcall %}",
    "{% set z=1 %}{% macro f() %}{{ z }}{% endmacro %}{% set z=2 %}{{ f() }}",
    "{% macro f(x) %}  {{ x }}  {% endmacro %}{{ f('a')|trim }}|{{ f('a') is string }}",
    ("{% macro f() %}{% if v is not defined %}{% set v = 'd' %}{% endif %}{{ v }}{% endmacro %}{{ f() }}"
     "{% set v = 'o' %}{{ f() }}"),
    ("{% for i in l %}{% if i == 'b' %}{% continue %}{% endif %}{% if i=='d' %}{% break %}{% endif %}"
     "{{ i }}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{loop.length}}{% endfor %}"),
    "{% for i in l if i != 'd' %}{{ i }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for i in l %}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('o','e') }}{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}{% for x in u %}x{% endfor %}",
    "{% for a, b in [(1,2),(3,4)] %}{{a}}{{b}}{% endfor %}{% for c in 'abc' %}{{c}},{% endfor %}",
    ("{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set x %}block{% endset %}{{ x }}{% set y | upper %}"
     "block{% endset %}{{ y }}"),
    ("{% if true %}{% set q = 1 %}{% endif %}{{ q }}{% for i in l %}{% set w = i %}{% endfor %}"
     "{{ w is defined }}"),
    "{% with a=1 %}{{ a }}{% endwith %}{% filter upper %}abc{% endfilter %}",
    "a{%- generation -%} {% set g = 1 %}x {%- endgeneration %} {{ g is defined }}",
    "{% set j = joiner(',') %}{% for i in l %}{{ j() }}{{ i }}{% endfor %}",
    ("{% set c = cycler('a', 'b') %}{{ c.current }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}"
     "{{ c.current }}{% set _ = c.reset() %}{{ c.current }}"),
]

WHITE_SPACE = [
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n{{ 1 }}\nb\n",
    "  {%- if true -%}  x  {%- endif -%}  y",
    "{# c #}\nx",
    "  {# c #}\nx",
    "{%+ if true %}x{% endif %}",
    "  {%+ if true %}x{% endif %}",
    "{% if true +%}\nx{% endif %}",
    "x\n\n",
    "x\n",
    "\n\n{% set a = 1 %}\n\n{{ a }}",
    "{% raw %}{{ x }}{% endraw %}",
    "{{- '  a' -}}   b",
    "a\r\nb\r\n{% if true %}\r\nc{% endif %}",
    "{%- if true %}\n\n  x\n{%- endif %}\n",
    "x {#- c -#} y",
    "{% for i in l %}\n{{ i }}\n{% endfor %}\n",
]

ESCAPES = [
    "{{ 'a\\nb\\t\\\\ \\' \\\" \\u00e9 \\x41' }}",
    "{{ 'a\\\nb' }}",
    "{{ 'a\\qb' }} {{ '\\d+' }}",
    "{{ \"it's\" }} {{ 'a' 'b' }}",
    "{{ 'a\nb' }}",
    "{{ 'a\\/b' }}",
    "{{ '\\v\\a\\b\\f\\r' }}",
    "{{ '\\U0001F600' }} {{ '\\101' }}",
    "{{ 'x}}' ~ '%}' ~ \"{{\" }}",
]

SNIPPETS = (NUMBERS + TEXTS_OF_VALUES + JSON + SLICES + METHODS + FILTERS + TESTS + TAGS + WHITE_SPACE
            + ESCAPES)
