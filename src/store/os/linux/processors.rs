//! The processors that a process may run on, and the nodes of memory beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crate::store::os::Processors;

/// Cores that do less than this part of what the fastest do are slow ones. Cores of one kind differ by a few
/// percent in how fast they may be clocked.
const SLOW: f64 = 0.75;

/// Those that this process may use.
pub fn of_this_process() -> Option<Processors> {
    found_under(Path::new("/"), &allowed()?)
}

/// Numbers of the processors that this thread may run on; `None` where there are more than the call can tell.
fn allowed() -> Option<BTreeSet<u32>> {
    // SAFETY: all zeros is such a set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: fills the set whose address and size it is given; 0 is this thread.
    let done = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } == 0;
    // SAFETY: the numbers lie within the set.
    let has = |i: &u32| unsafe { libc::CPU_ISSET(*i as usize, &set) };
    done.then(|| (0..libc::CPU_SETSIZE as u32).filter(has).collect())
}

/// What the system whose files lie under `root` says of processors; `None` where it says nothing of them.
fn found_under(root: &Path, allowed: &BTreeSet<u32>) -> Option<Processors> {
    let system = root.join("sys/devices/system");
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let of = |cpu: u32, name: &str| read(&system.join(format!("cpu/cpu{cpu}/{name}")));
    // Processors of one core have each other for siblings: a core is known by all of them.
    let mut cores: BTreeMap<BTreeSet<u32>, f64> = BTreeMap::new();
    let efficient =
        read(&root.join("sys/devices/cpu_atom/cpus")).and_then(|text| list(&text)).unwrap_or_default();
    for &cpu in allowed {
        let siblings =
            of(cpu, "topology/core_cpus_list").or_else(|| of(cpu, "topology/thread_siblings_list"))?;
        let number = |name| of(cpu, name)?.trim().parse::<f64>().ok();
        let speed = match number("cpu_capacity").or_else(|| number("cpufreq/cpuinfo_max_freq")) {
            _ if efficient.contains(&cpu) => 0.0,
            Some(speed) => speed,
            None => 1.0,
        };
        let core = cores.entry(list(&siblings)?).or_insert(speed);
        *core = core.max(speed);
    }
    let fastest = cores.values().fold(0.0, |fastest: f64, &speed| fastest.max(speed));
    Some(Processors {
        fast_cores: cores.values().filter(|&&speed| speed >= fastest * SLOW).count(),
        cores: cores.len(),
        threads: allowed.len(),
        nodes: nodes(&system, allowed),
    })
}

/// Nodes of memory beside these processors.
fn nodes(system: &Path, allowed: &BTreeSet<u32>) -> Vec<u32> {
    let online = std::fs::read_to_string(system.join("node/online")).ok().and_then(|text| list(&text));
    let beside = |node: &u32| {
        let cpus = std::fs::read_to_string(system.join(format!("node/node{node}/cpulist"))).ok();
        cpus.and_then(|text| list(&text)).is_some_and(|cpus| !cpus.is_disjoint(allowed))
    };
    online.unwrap_or_default().into_iter().filter(beside).collect()
}

/// Numbers as the system lists them: `0-3,8,10-11`.
fn list(text: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // More than any machine has: not such a list.
        if last.checked_sub(first)? > 1 << 16 {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// Has pages that this thread, and those that it starts from now on, ask for come from these nodes in turns.
/// Pages of files that they read are among them. Whether it was done: what somebody has set before stays.
pub fn interleave(nodes: &[u32]) -> io::Result<bool> {
    const BITS: u32 = libc::c_ulong::BITS;
    let mut mask = vec![0; nodes.iter().map(|node| node / BITS + 1).max().unwrap_or(1) as usize];
    for node in nodes {
        mask[(node / BITS) as usize] |= (1 as libc::c_ulong) << (node % BITS);
    }
    let mut now: libc::c_int = 0;
    let none = std::ptr::null_mut::<libc::c_ulong>();
    // SAFETY: writes the policy of this thread to a number, and no mask.
    if unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut now, none, 0, none, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if now != libc::MPOL_DEFAULT {
        return Ok(false);
    }
    // The call leaves out the last of the bits that it is told of.
    let bits = mask.len() * BITS as usize + 1;
    // SAFETY: reads so many bits of the mask.
    match unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_INTERLEAVE, mask.as_ptr(), bits) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(String, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join("sys/devices").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn cpu(cpu: u32, name: &str, text: &str) -> (String, String) {
        (format!("system/cpu/cpu{cpu}/{name}"), format!("{text}\n"))
    }

    fn found(files: &[(String, String)], allowed: &str) -> Option<(usize, usize, usize, Vec<u32>)> {
        let found = found_under(system(files).path(), &list(allowed).unwrap())?;
        Some((found.fast_cores, found.cores, found.threads, found.nodes))
    }

    #[test]
    fn lists() {
        let of = |text: &str| list(text).map(|numbers| numbers.into_iter().collect::<Vec<_>>());
        assert_eq!(of("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(of("\n"), Some(vec![]));
        for wrong in ["a", "3-1", "1-", "0-4294967295", "1,,x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    /// Two processors a core, two nodes; a process may have part of them.
    #[test]
    fn siblings_and_nodes() {
        let mut files: Vec<_> = (0..8)
            .map(|i| cpu(i, "topology/thread_siblings_list", &format!("{},{}", i % 4, i % 4 + 4)))
            .collect();
        files.push(("system/node/online".into(), "0-1\n".into()));
        files.push(("system/node/node0/cpulist".into(), "0-1,4-5\n".into()));
        files.push(("system/node/node1/cpulist".into(), "2-3,6-7\n".into()));
        assert_eq!(found(&files, "0-7"), Some((4, 4, 8, vec![0, 1])));
        assert_eq!(found(&files, "0-1,4-5"), Some((2, 2, 4, vec![0])));
        assert_eq!(found(&files, "1-3"), Some((3, 3, 3, vec![0, 1])));
        assert_eq!(found(&[], "0-1"), None);
    }

    /// Fast cores of two processors each and slow ones of one, told apart in each of the ways.
    #[test]
    fn cores_of_two_speeds() {
        let siblings =
            |i: u32| if i < 4 { format!("{}-{}", i / 2 * 2, i / 2 * 2 + 1) } else { i.to_string() };
        let cores: Vec<_> = (0..8).map(|i| cpu(i, "topology/core_cpus_list", &siblings(i))).collect();
        assert_eq!(found(&cores, "0-7"), Some((6, 6, 8, vec![])), "no speeds are known");
        let speeds = |name: &str, fast: &str, slow: &str| {
            let speed = |i| cpu(i, name, if i < 4 { fast } else { slow });
            cores.iter().cloned().chain((0..8).map(speed)).collect::<Vec<_>>()
        };
        for (name, fast, slow) in
            [("cpu_capacity", "1024", "446"), ("cpufreq/cpuinfo_max_freq", "5200000", "3800000")]
        {
            assert_eq!(found(&speeds(name, fast, slow), "0-7"), Some((2, 6, 8, vec![])), "{name}");
            assert_eq!(found(&speeds(name, fast, slow), "4-7"), Some((4, 4, 4, vec![])), "{name}");
        }
        let turbo = speeds("cpufreq/cpuinfo_max_freq", "5200000", "5000000");
        assert_eq!(found(&turbo, "0-7"), Some((6, 6, 8, vec![])), "cores of one kind");
        let mut atoms = cores.clone();
        atoms.push(("cpu_atom/cpus".into(), "4-7\n".into()));
        assert_eq!(found(&atoms, "0-7"), Some((2, 6, 8, vec![])));
    }

    /// On a thread of its own, which has it to itself. In a container the call may be forbidden.
    #[test]
    fn pages_come_from_nodes_in_turns() {
        let done = std::thread::spawn(|| {
            let nodes = of_this_process().map(|found| found.nodes).filter(|nodes| !nodes.is_empty())?;
            let first = interleave(&nodes).ok()?;
            Some((first, interleave(&nodes).unwrap(), vec![1u8; 1 << 20].len()))
        });
        match done.join().unwrap() {
            Some((first, again, _)) => {
                assert!(!again, "what is set stays");
                assert!(first, "it was the default");
            }
            None => crate::quant::testing::say("skipped: no nodes, or a policy of memory is forbidden here"),
        }
    }
}
