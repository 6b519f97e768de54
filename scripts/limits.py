"""Runs a program in a memory control group of its own and watches what it reads from disk. Linux, as root.

`memory_controller` finds control groups of version 1 or 2, `devices_of` the block devices that files lie on, `run` runs a program
under a limit. The page cache counts against the limit, as everywhere in control groups, and there is no swap.
"""
from __future__ import annotations

import bisect, errno, itertools, os, re, signal, subprocess, threading, time, unittest
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512  # bytes, in the counters of every block device
SAMPLE_EVERY = 0.02  # seconds
# What systemd and containers leave to a root user differs: the error says what to do.
HINT = "--cgroup names another group to make ours in: one that holds no processes and may limit memory"


class LimitError(Exception):
    """What is needed to limit memory or to count reads is not there."""


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo."""
    device: str  # MAJOR:MINOR, of no block device where the major is 0
    point: Path
    kind: str
    source: str
    options: frozenset[str]  # of the file system


def mounts(mountinfo: str) -> list[Mount]:
    """What is mounted, by the text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        # Optional fields come before the dash, as many as there are.
        left, _, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) >= 6 and len(after) >= 3:
            point, source, options = Path(unescaped(before[4])), unescaped(after[1]), frozenset(after[2].split(","))
            found.append(Mount(before[2], point, after[0], source, options))
    return found


def unescaped(text: str) -> str:
    """The kernel writes blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def counters(text: str) -> dict[str, int]:
    """Lines of a name and a number, as in memory.events; a colon may follow the name, as in /proc/PID/io."""
    pairs = (line.replace(":", " ").split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def bytes_read(stat: str) -> int:
    """Bytes read from a block device since the start, by the text of its `stat` file: the third field counts sectors."""
    fields = stat.split()
    if len(fields) < 11:
        raise LimitError(f"not the counters of a block device: {stat!r}")
    return int(fields[2]) * SECTOR


@dataclass(frozen=True)
class Version:
    """The names of a version's files. Those that are `maybe` there depend on how the kernel was built."""
    number: int
    limit: str
    peak: str
    oom: str  # a line `oom_kill N`
    swap: tuple[tuple[str, str], ...]  # maybe: file and what is written, {limit} the limit


V1 = Version(1, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control",
             (("memory.swappiness", "0"), ("memory.memsw.limit_in_bytes", "{limit}")))
V2 = Version(2, "memory.max", "memory.peak", "memory.events", (("memory.swap.max", "0"),))


@dataclass(frozen=True)
class Controller:
    """Where groups that limit memory are made."""
    version: Version
    parent: Path


def memory_controller(parent: Path | None = None, mountinfo: str | None = None) -> Controller:
    """The memory controller of this machine; groups are made in `parent`, else in the topmost group."""
    mounted = mounts(mountinfo if mountinfo is not None else Path("/proc/self/mountinfo").read_text())
    # With both versions mounted, version 1 has the controller where it names it.
    found = [(V1, m.point) for m in mounted if m.kind == "cgroup" and "memory" in m.options]
    found += [(V2, m.point) for m in mounted if m.kind == "cgroup2"]
    if not found:
        raise LimitError("no control groups are mounted that could limit memory")
    version, top = found[0]
    parent = parent or top
    if not parent.is_relative_to(top):
        raise LimitError(f"{parent} is not a group below {top}, where memory is limited on this machine")
    return Controller(version, parent)


class Group:
    """A control group of our own; as a context it is there until the end of it, come what may."""
    _numbers = itertools.count()

    def __init__(self, controller: Controller, limit: int | None) -> None:
        self.version = controller.version
        self.path = controller.parent / f"wayinfer-{os.getpid()}-{next(self._numbers)}"
        self.limit = limit

    def __enter__(self) -> Group:
        try:
            if self.version is V2:
                enable_memory(self.path.parent)
            self.path.mkdir()
        except OSError as e:
            raise LimitError(f"no control group can be made in {self.path.parent}: {e.strerror}. {HINT}") from e
        try:
            if self.limit is not None:
                self._write(self.version.limit, str(self.limit))
            for name, value in self.version.swap:
                if (self.path / name).exists() and ("{limit}" not in value or self.limit is not None):
                    self._write(name, value.format(limit=self.limit))
        except OSError as e:
            self.remove()
            raise LimitError(f"{self.path}: the limit cannot be set: {e.strerror}") from e
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _write(self, name: str, value: str) -> None:
        (self.path / name).write_text(value)

    def join(self) -> None:
        """Moves the calling process into the group: for the child, before it becomes the program."""
        self._write("cgroup.procs", "0")

    def peak(self) -> int | None:
        """The high-water mark in bytes; kernels before 5.19 do not keep one in version 2."""
        file = self.path / self.version.peak
        return int(file.read_text()) if file.exists() else None

    def oom_kills(self) -> int:
        return counters((self.path / self.version.oom).read_text()).get("oom_kill", 0)

    def remove(self) -> None:
        """Ends what still runs in the group, all of it started here, and takes the group away."""
        for _ in range(100):
            try:
                self.path.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError as e:
                if e.errno != errno.EBUSY:
                    raise
            for pid in (self.path / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)
        raise LimitError(f"{self.path} cannot be removed: something in it does not end")


def enable_memory(parent: Path) -> None:
    """Lets groups in `parent` limit memory (version 2)."""
    if "memory" in (parent / "cgroup.subtree_control").read_text().split():
        return
    if "memory" not in (parent / "cgroup.controllers").read_text().split():
        raise LimitError(f"{parent} has no memory controller. {HINT}")
    # Refused where the group holds processes and is not the topmost one.
    (parent / "cgroup.subtree_control").write_text("+memory")


def devices_of(files: list[Path]) -> list[Path] | None:
    """The counters of the block devices that files lie on, partitions or disks; `None` where one lies on none (tmpfs, network)."""
    found = set()
    mounted: list[Mount] = []
    for file in files:
        device = named(os.stat(file).st_dev)
        if not (counter := counter_of(device)).exists():
            # btrfs and the like have numbers of their own: the mount says which device it is.
            mounted = mounted or mounts(Path("/proc/self/mountinfo").read_text())
            sources = [m.source for m in mounted if m.device == device and m.source.startswith("/dev/")]
            if not sources or not (counter := counter_of(named(os.stat(sources[0]).st_rdev))).exists():
                return None
        found.add(counter)
    return sorted(found)


def named(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def counter_of(device: str) -> Path:
    return Path("/sys/dev/block") / device / "stat"


def parts_of(model: Path) -> list[Path]:
    """All files of a model that may be split."""
    split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", model.name)
    if not split:
        return [model]
    return [model.with_name(f"{split[1]}-{i:05}-of-{split[2]}.gguf") for i in range(1, int(split[2]) + 1)]


def available_memory() -> int:
    """Bytes that the machine has for a program, file pages counted as free."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@dataclass
class Samples:
    """Bytes read since the start, at times of `time.time`: by all from the devices, and by the program."""
    times: list[float] = field(default_factory=list)
    device: list[int] = field(default_factory=list)
    program: list[int] = field(default_factory=list)

    def between(self, start: float, end: float, by_program: bool = False) -> float | None:
        """Bytes that the devices gave between two times, or that the program asked them for; `None` where the samples do not
        reach so far."""
        counts = self.program if by_program else self.device
        times = self.times[:len(counts)]
        if not times or start < times[0] or end > times[-1]:
            return None
        return interpolated(times, counts, end) - interpolated(times, counts, start)


def interpolated(times: list[float], counts: list[int], when: float) -> float:
    after = max(bisect.bisect_left(times, when), 1)
    (t0, t1), (b0, b1) = times[after - 1:after + 1], counts[after - 1:after + 1]
    return b0 + (b1 - b0) * (when - t0) / (t1 - t0)


class Sampler:
    """Takes samples in a thread until it is told to stop. A phase of the program is then found by its time."""

    def __init__(self, pid: int, devices: list[Path] | None) -> None:
        self.samples = Samples()
        self._devices = devices
        self._io = Path(f"/proc/{pid}/io")
        self._ended = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY):
            self._take()

    def _take(self) -> None:
        samples = self.samples
        samples.times.append(time.time())
        if self._devices is not None:
            samples.device.append(sum(bytes_read(counter.read_text()) for counter in self._devices))
        # Of a program that has ended there is no count.
        with suppress(OSError, KeyError):
            samples.program.append(counters(self._io.read_text())["read_bytes"])

    def stop(self) -> Samples:
        self._ended.set()
        self._thread.join()
        self._take()
        return self.samples


@dataclass(frozen=True)
class Run:
    """What came of a program."""
    code: int  # negative: ended by that signal
    out: str
    err: str
    started: float  # time.time
    seconds: float
    timed_out: bool
    peak_bytes: int | None
    oom_kills: int
    samples: Samples

    @property
    def failed(self) -> bool:
        return self.code != 0 or self.timed_out or self.oom_kills > 0


def run(command: list[str], controller: Controller, limit: int | None, devices: list[Path] | None, timeout: float) -> Run:
    """Runs a program in a group of its own, limited to so many bytes where a limit is given, to its end."""
    with Group(controller, limit) as group:
        # Returns when the child has become the program.
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       text=True, errors="replace", preexec_fn=group.join)
        except (OSError, subprocess.SubprocessError) as e:
            raise LimitError(f"{command[0]} cannot be started in {group.path}: {e}") from e
        started = time.time()
        sampler = Sampler(process.pid, devices)
        timed_out = False
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.kill()
            out, err = process.communicate()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            seconds = time.time() - started
            samples = sampler.stop()
        return Run(process.returncode, out, err, started, seconds, timed_out, group.peak(), group.oom_kills(), samples)


class LimitsTest(unittest.TestCase):
    """What needs neither root nor a machine."""
    HYBRID = ("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"
              "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
              "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 master:2 - cgroup cgroup rw,memory\n"
              "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
              "50 27 0:44 /sub /mnt/two\\040words rw - btrfs /dev/mapper/a\\134b rw,ssd\n")
    UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    STAT = " 1784448    73539 425217282  7988895   244523   180845 244437096  1796042        0   604652  9845307   175827 60 1 2 3 4\n"

    def test_mounts(self) -> None:
        found = mounts(self.HYBRID + "a line of something else\n")
        self.assertEqual([m.kind for m in found], ["ext4", "tmpfs", "cgroup", "cgroup2", "btrfs"])
        self.assertEqual(found[0], Mount("254:0", Path("/"), "ext4", "/dev/vda", frozenset({"rw", "discard"})))
        self.assertEqual((found[4].point, found[4].source), (Path("/mnt/two words"), "/dev/mapper/a\\b"))

    def test_controllers(self) -> None:
        self.assertEqual(memory_controller(None, self.HYBRID), Controller(V1, Path("/sys/fs/cgroup/memory")))
        self.assertEqual(memory_controller(None, self.UNIFIED), Controller(V2, Path("/sys/fs/cgroup")))
        below = Path("/sys/fs/cgroup/a.slice")
        self.assertEqual(memory_controller(below, self.UNIFIED).parent, below)
        with self.assertRaises(LimitError):
            memory_controller(below, self.HYBRID)
        with self.assertRaises(LimitError):
            memory_controller(None, self.HYBRID.splitlines()[0])

    def test_counters(self) -> None:
        self.assertEqual(bytes_read(self.STAT), 425217282 * 512)
        self.assertEqual(counters("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")["oom_kill"], 3)
        self.assertEqual(counters("low 0\nmax 17\noom_kill 0\n")["max"], 17)
        self.assertEqual(counters("rchar: 12\nread_bytes: 4096\n")["read_bytes"], 4096)
        with self.assertRaises(LimitError):
            bytes_read("12 34\n")

    def test_samples(self) -> None:
        samples = Samples([10.0, 11.0, 13.0], [100, 200, 600])
        self.assertEqual(samples.between(10.5, 12.0), 250.0)
        self.assertEqual(samples.between(10.0, 13.0), 500.0)
        self.assertIsNone(samples.between(12.0, 13.5))
        self.assertIsNone(samples.between(9.5, 12.0))
        self.assertIsNone(Samples([10.0, 11.0]).between(10.0, 11.0))
        ended = Samples([10.0, 11.0, 13.0], [100, 200, 600], [0, 50])  # before the last sample
        self.assertEqual(ended.between(10.5, 11.0, by_program=True), 25.0)
        self.assertIsNone(ended.between(10.5, 12.0, by_program=True))

    def test_parts(self) -> None:
        self.assertEqual(parts_of(Path("d/m.gguf")), [Path("d/m.gguf")])
        self.assertEqual(parts_of(Path("d/m-00002-of-00002.gguf")), [Path(f"d/m-0000{i}-of-00002.gguf") for i in (1, 2)])

    def test_groups_of_version_2(self) -> None:
        """In a folder that is no control group: which files are written, and with what."""
        import tempfile
        with tempfile.TemporaryDirectory() as tmp:
            parent = Path(tmp)
            (parent / "cgroup.controllers").write_text("cpu memory pids\n")
            (parent / "cgroup.subtree_control").write_text("cpu\n")
            group = Group(Controller(V2, parent), 1 << 30)
            with group:
                self.assertEqual((parent / "cgroup.subtree_control").read_text(), "+memory")
                self.assertEqual((group.path / "memory.max").read_text(), str(1 << 30))
                self.assertIsNone(group.peak())
                (group.path / "memory.peak").write_text("4096\n")
                (group.path / "memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 2\n")
                self.assertEqual((group.peak(), group.oom_kills()), (4096, 2))
                for file in group.path.iterdir():
                    file.unlink()  # a control group's files go with it
            self.assertFalse(group.path.exists())
            (parent / "cgroup.subtree_control").write_text("cpu\n")
            (parent / "cgroup.controllers").write_text("cpu\n")
            with self.assertRaises(LimitError), Group(Controller(V2, parent), None):
                pass
