"""A process with models in it: interrupts, forks, and its end."""

from __future__ import annotations

import gc
import os
import sys
import threading

import pytest
from conftest import Script, fixture

import wayinfer
from wayinfer import Model, SamplingParams

OPEN = """
import sys, wayinfer
model = wayinfer.Model(sys.argv[1], threads=1, parallel=2, context=200000)
endless = wayinfer.SamplingParams(temperature=0, logit_bias={id: -100 for id in model.facts["ends"]})
"""

WAYS = {
    "generate": "model.generate('a', endless)",
    "many": "model.generate(['a'] * 9, endless)",
    "stream": "[piece for piece in model.generate('a', endless, stream=True)]",
    "session": "model.session().append('a').generate(endless)",
    "append": "model.session().append([1] * 199999)",
    "logits": "model.logits([1] * 199999)",
    "perplexity": "model.perplexity('a b c ' * 20000, window=5000)",
    "asyncio": "__import__('asyncio').run(model.agenerate('a', endless))",
}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is sent otherwise")
@pytest.mark.parametrize("way", WAYS)
def test_interrupts_end_what_is_under_way(way: str) -> None:
    script = Script(
        OPEN
        + f"""
import threading, time
print("ready")
sys.stdin.readline()
threading.Timer(0.5, lambda: print("running")).start()
try:
    {WAYS[way]}
    print("ended by itself")
except KeyboardInterrupt:
    print("interrupted")
print(model.generate("a", wayinfer.SamplingParams(max_tokens=1, temperature=0)).completion_tokens)
""",
        [fixture("dense-q8_0")],
    )
    assert script.line() == "ready"
    assert script.process.stdin is not None
    script.process.stdin.write("go\n")
    script.process.stdin.flush()
    assert script.line() == "running"
    script.interrupt()
    ran = script.end()
    assert (ran.code, ran.out.split(), ran.told) == (0, ["interrupted", "1"], ""), ran.told


ENDINGS = {
    "a stream is left": "next(model.generate('a', endless, stream=True))",
    "a stream is held": "stream = model.generate('a', endless, stream=True); next(stream)",
    "a thread waits": """
import threading
threading.Thread(target=lambda: model.generate("a", endless), daemon=True).start()
import time; time.sleep(0.2)
""",
    "a thread takes a stream": """
import threading
def work():
    for piece in model.generate("a", endless, stream=True): pass
threading.Thread(target=work, daemon=True).start()
import time; time.sleep(0.2)
""",
    "a session is held": "session = model.session().append('a'); next(session.generate(endless, stream=True))",
    "a session waits on a thread": """
import threading
session = model.session()
threading.Thread(target=lambda: session.append([1] * 199999), daemon=True).start()
import time; time.sleep(0.2)
""",
    "by exit": "stream = model.generate('a', endless, stream=True); next(stream); sys.exit(0)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_may_end_at_any_time(ending: str) -> None:
    ran = Script(OPEN + ENDINGS[ending], [fixture("dense-q8_0")]).end()
    assert ran.code == 0, ran.told
    assert "panicked" not in ran.told and "Fatal" not in ran.told, ran.told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_opens_its_own(dense: Model) -> None:
    code = """
import os
child = os.fork()
if child == 0:
    try:
        model.generate("a")
    except wayinfer.UsageError as error:
        assert "does not survive a fork" in str(error)
    with wayinfer.Model(sys.argv[1], threads=1) as own:
        assert own.generate("a", wayinfer.SamplingParams(max_tokens=2)).text
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("well")
"""
    ran = Script(OPEN + code, [fixture("dense-q8_0")]).end()
    assert (ran.code, ran.out.strip()) == (0, "well"), ran.told


def test_a_stream_keeps_its_model() -> None:
    params = SamplingParams(max_tokens=30, temperature=0)
    pieces = Model(fixture("dense-q8_0"), threads=1).generate("a", params, stream=True)
    gc.collect()
    assert "".join(piece.text for piece in pieces)


def test_it_tells_nothing_unless_asked_to() -> None:
    quiet = "import wayinfer; wayinfer.Model().chat([{'role': 'user', 'content': 'What is 2+2?'}])"
    ran = Script(quiet).end()
    assert (ran.code, ran.out, ran.told) == (0, "", "")
    assert "demo is loaded" in Script(quiet.replace("Model()", "Model(verbose=True)")).end().told


def test_other_threads_go_on_meanwhile(dense: Model) -> None:
    """What computes does not hold the interpreter."""
    counted = 0
    over = threading.Event()

    def count() -> None:
        nonlocal counted
        while not over.is_set():
            counted += 1
            over.wait(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    dense.generate("a", SamplingParams(max_tokens=200, temperature=0))
    dense.logits([1] * 400)
    over.set()
    thread.join()
    assert counted > 5


def test_a_closed_model_says_so() -> None:
    model = Model(fixture("dense-q8_0"), threads=1)
    stream = model.generate("a", SamplingParams(temperature=0), stream=True)
    next(stream)
    session = model.session()
    model.close()
    model.close()
    with pytest.raises(wayinfer.Error):
        list(stream)
    for work in (lambda: model.generate("a"), lambda: model.logits([1]), lambda: session.append("a"), model.session):
        with pytest.raises(wayinfer.Error):
            work()


def test_programs_need_not_have_numpy() -> None:
    code = """
import sys
sys.modules["numpy"] = None
import wayinfer
model = wayinfer.Model()
print(model.chat([{"role": "user", "content": "What is 2+2?"}]).text)
try:
    model.logits([1])
except ImportError:
    print("no arrays")
"""
    ran = Script(code).end()
    assert ran.out.splitlines() == ["The sum of 2 and 2 is 4.", "no arrays"], ran.told
