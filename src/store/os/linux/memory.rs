//! How much memory there is for a process, the machine's and what its control groups leave it, and how much
//! it has.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::MemoryLimit;

/// A line of `/proc/self/status` that counts bytes: `VmHWM` and `RssAnon` are.
pub fn of_this_process(name: &str) -> Option<u64> {
    bytes_of(&std::fs::read_to_string("/proc/self/status").ok()?, name)
}

/// The number of a line `NAME:  1234 kB` in bytes, which is how files of `/proc` count memory.
fn bytes_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Memory that the system whose files lie under `root` has available, or less where a control group (v1 or
/// v2) allows less.
pub fn available_under(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| bytes_of(&text, "MemAvailable"));
    let groups = groups_under(root);
    let left = groups.iter().filter_map(|group| group.left(root));
    machine.into_iter().chain(left).min()
}

/// Memory that the system whose files lie under `root` has.
pub fn total_under(root: &Path) -> Option<u64> {
    bytes_of(&std::fs::read_to_string(root.join("proc/meminfo")).ok()?, "MemTotal")
}

/// The limits of the control groups that this process is in.
pub fn limits_under(root: &Path) -> Vec<MemoryLimit> {
    groups_under(root).iter().flat_map(|group| group.limits(root)).collect()
}

/// For whom the system makes large pages: the word in brackets of its setting.
pub fn large_pages_under(root: &Path) -> Option<String> {
    let setting = root.join("sys/kernel/mm/transparent_hugepage/enabled");
    let text = std::fs::read_to_string(setting).ok()?;
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn groups_under(root: &Path) -> Vec<Group> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    match (read("proc/self/cgroup"), read("proc/self/mountinfo")) {
        (Some(own), Some(mounts)) => groups(&own, &mounts),
        _ => Vec::new(),
    }
}

/// The names of the files in which a version of control groups says how much there is and how much is used.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    limits: &'static [&'static str],
    usage: &'static str,
    /// Lines of `memory.stat` that count file pages, which go where memory is short.
    reclaimable: [&'static str; 2],
}

const V1: Version = Version {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file"],
};
const V2: Version =
    // Beyond `high` the system takes memory back and slows the process down.
    Version {
        limits: &["memory.max", "memory.high"],
        usage: "memory.current",
        reclaimable: ["inactive_file", "active_file"],
    };

/// A control group that limits memory.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    version: &'static Version,
    folder: PathBuf,
}

impl Group {
    /// What one of its files says.
    fn read(&self, root: &Path, name: &str) -> Option<String> {
        let folder = root.join(self.folder.strip_prefix("/").unwrap_or(&self.folder));
        std::fs::read_to_string(folder.join(name)).ok()
    }

    /// Its limits, if it has any: `max` is none in v2, v1 has a number near 2^63.
    fn limits(&self, root: &Path) -> Vec<MemoryLimit> {
        let limit = |name: &&str| {
            let bytes = self.read(root, name)?.trim().parse().ok().filter(|&bytes| bytes < 1 << 60)?;
            Some(MemoryLimit { by: self.folder.join(name).display().to_string(), bytes })
        };
        self.version.limits.iter().filter_map(limit).collect()
    }

    /// Bytes that it leaves; `None` where it has no limit.
    fn left(&self, root: &Path) -> Option<u64> {
        let read = |name: &str| self.read(root, name);
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let limit = self.limits(root).into_iter().map(|limit| limit.bytes).min()?;
        let stat = read("memory.stat").unwrap_or_default();
        let pages = |name: &str| {
            let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let reclaimable: u64 = self.version.reclaimable.iter().map(|name| pages(name)).sum();
        let used = number(self.version.usage).unwrap_or(0).saturating_sub(reclaimable);
        Some(limit.saturating_sub(used))
    }
}

/// The groups that a process is in, its own and those above, by `/proc/self/cgroup` and
/// `/proc/self/mountinfo`.
fn groups(own: &str, mounts: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (version, mounted) = match controllers {
            "" if id == "0" => (&V2, mounted(mounts, "cgroup2", None)),
            _ if controllers.split(',').any(|c| c == "memory") => {
                (&V1, mounted(mounts, "cgroup", Some("memory")))
            }
            _ => continue,
        };
        let path = Path::new(path);
        // A tree may be mounted at several places, each of which shows a part of it.
        let shown =
            |mount: &Mount| Some((path.strip_prefix(&mount.top).ok()?.to_owned(), mount.point.clone()));
        let mut places: Vec<(PathBuf, PathBuf)> = mounted.iter().filter_map(shown).collect();
        // In a container the path may be told from the root of the part that it sees.
        if let (true, Some(first)) = (places.is_empty(), mounted.first()) {
            places.push((path.strip_prefix("/").unwrap_or(path).to_owned(), first.point.clone()));
        }
        for (within, point) in places {
            groups.extend(within.ancestors().map(|p| Group { version, folder: point.join(p) }));
        }
    }
    groups
}

/// A mounted file system of control groups.
struct Mount {
    /// The folder of the tree that it shows.
    top: PathBuf,
    point: PathBuf,
}

/// Where file systems of control groups are mounted.
fn mounted(mounts: &str, kind: &str, option: Option<&str>) -> Vec<Mount> {
    let mount = |line: &str| {
        // 35 31 0:32 /shown /mount/point options .. - kind source super,options
        let (place, what) = line.split_once(" - ")?;
        let mut what = what.split(' ');
        let (found, options) = (what.next()?, what.nth(1)?);
        let has = |wanted: &str| options.split(',').any(|o| o == wanted);
        if found != kind || option.is_some_and(|wanted| !has(wanted)) {
            return None;
        }
        let mut place = place.split(' ').skip(3);
        Some(Mount { top: unescaped(place.next()?), point: unescaped(place.next()?) })
    };
    mounts.lines().filter_map(mount).collect()
}

/// A path of mountinfo, in which blanks, line ends and backslashes are `\` and three octal digits.
fn unescaped(path: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        let escaped = after.get(..3).filter(|_| byte == b'\\').and_then(octal);
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n";
    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn available_memory() {
        let of = |text| bytes_of(text, "MemAvailable");
        assert_eq!(of("MemAvailable:   20000001 kB\n"), Some(20_000_001 * 1024));
        assert_eq!(of("MemTotal: 1 kB\n"), None);
        assert_eq!(of("MemAvailable: many kB\n"), None);
        assert_eq!(bytes_of("VmRSS:\t    5000 kB\nRssAnon:\t    1234 kB\n", "RssAnon"), Some(1234 * 1024));
        assert_eq!(available_under(system(&[]).path()), None);
        let free = system(&[("proc/meminfo", MEMINFO)]);
        assert_eq!(available_under(free.path()), Some(20_000_000 * 1024));
        assert_eq!(total_under(free.path()), Some(24_000_000 * 1024));
        let pages = "sys/kernel/mm/transparent_hugepage/enabled";
        assert_eq!(large_pages_under(free.path()), None);
        let pages = system(&[(pages, "always [madvise] never\n")]);
        assert_eq!(large_pages_under(pages.path()).as_deref(), Some("madvise"));
    }

    #[test]
    fn groups_of_the_first_version() {
        let group = "sys/fs/cgroup/memory/a";
        let system = |limit: &str| {
            system(&[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "5:cpu:/x\n4:memory:/a/b\n0::/\n"),
                ("proc/self/mountinfo", MOUNTS),
                (&format!("{group}/b/memory.limit_in_bytes"), "9223372036854771712\n"),
                (&format!("{group}/memory.limit_in_bytes"), limit),
                (&format!("{group}/memory.usage_in_bytes"), "5000000000\n"),
                (
                    &format!("{group}/memory.stat"),
                    "total_inactive_file_x 9\ntotal_inactive_file 3000000000\ntotal_active_file 1000000000\n",
                ),
            ])
        };
        assert_eq!(available_under(system("12000000000\n").path()), Some(11_000_000_000));
        let limited = system("12000000000\n");
        let by = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes".to_owned();
        assert_eq!(limits_under(limited.path()), [MemoryLimit { by, bytes: 12_000_000_000 }]);
        assert_eq!(available_under(system("500000000\n").path()), Some(0));
        assert_eq!(available_under(system("9223372036854771712\n").path()), Some(20_000_000 * 1024));
    }

    #[test]
    fn groups_of_the_second_version_in_a_container() {
        let mounts = "41 31 0:38 /docker/1f /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let system = system(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/docker/1f/job\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/job/memory.max", "max\n"),
            ("sys/fs/cgroup/job/memory.high", "max\n"),
            ("sys/fs/cgroup/memory.max", "8000000000\n"),
            ("sys/fs/cgroup/memory.current", "1500000000\n"),
            ("sys/fs/cgroup/memory.stat", "anon 1000000000\ninactive_file 400000000\nactive_file 0\n"),
        ]);
        assert_eq!(available_under(system.path()), Some(6_900_000_000));
        std::fs::write(system.path().join("sys/fs/cgroup/memory.high"), "7000000000\n").unwrap();
        assert_eq!(available_under(system.path()), Some(5_900_000_000));
    }

    #[test]
    fn a_limit_is_found_wherever_its_group_is_mounted() {
        // A mount of another part of the tree comes first, and the group's own has a blank in its path.
        let mounts = "\
40 31 0:38 /other /run/other rw - cgroup2 cgroup rw
41 31 0:38 / /mnt/a\\040group rw - cgroup2 cgroup rw
42 31 0:38 /my\\134\\040job /run/job rw - cgroup2 cgroup rw
";
        let system = |limited: &str| {
            system(&[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", "0::/my\\ job/part\n"),
                ("proc/self/mountinfo", mounts),
                (limited, "3000000000\n"),
            ])
        };
        for found in ["mnt/a group/my\\ job/memory.max", "run/job/part/memory.max", "run/job/memory.max"] {
            assert_eq!(available_under(system(found).path()), Some(3_000_000_000), "{found}");
        }
        let not_ours = system("run/other/memory.max");
        assert_eq!(available_under(not_ours.path()), Some(20_000_000 * 1024));
        assert_eq!(unescaped(r"a\9b\04"), Path::new(r"a\9b\04"), "what is no escape stays");
    }
}
