//! Machines whose memory lies in several nodes (NUMA), each next to some of the processors.
//!
//! A weight is read by whichever thread is free: from one node all of them would get that node's bandwidth,
//! from all nodes in turns that of all.

use std::fmt;

use super::os::{Os, Processors, System};

/// Where pages of weights, keys and values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// One node, or none that the system tells of: there is no choice.
    One,
    /// So many nodes in turns.
    Interleaved(usize),
    /// Of so many nodes as the user has set it for this process.
    AsSet(usize),
    /// Of so many nodes mostly that next to whoever first asked for a page: the system forbids to change it,
    /// or cannot.
    Local(usize),
}

impl Nodes {
    /// Has what this thread and those that it starts read from now on lie in all nodes that this process has
    /// processors of, in turns. What is in the page cache stays where it is.
    pub fn interleave() -> Nodes {
        Nodes::of(&Processors::of_this_process().nodes, Os::interleave_pages)
    }

    fn of(nodes: &[u32], interleave: impl FnOnce(&[u32]) -> std::io::Result<bool>) -> Nodes {
        let n = nodes.len();
        if n < 2 {
            return Nodes::One;
        }
        match interleave(nodes) {
            Ok(true) => Nodes::Interleaved(n),
            Ok(false) => Nodes::AsSet(n),
            Err(_) => Nodes::Local(n),
        }
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Nodes::One => write!(f, "one node"),
            Nodes::Interleaved(n) => write!(f, "{n} nodes, whose pages are taken in turns"),
            Nodes::AsSet(n) => write!(f, "{n} nodes, whose pages are taken as it was set for this process"),
            Nodes::Local(n) => {
                write!(
                    f,
                    "{n} nodes, each page of the one next to who asks first: the system allows no other way"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_nodes_are_taken_in_turns_where_the_system_lets_us() {
        let never = |_: &[u32]| -> std::io::Result<bool> { panic!("there is no choice") };
        assert_eq!(Nodes::of(&[], never), Nodes::One);
        assert_eq!(Nodes::of(&[3], never), Nodes::One);
        let of = |answer| {
            Nodes::of(&[0, 2], |nodes| {
                assert_eq!(nodes, [0, 2]);
                answer
            })
        };
        assert_eq!(of(Ok(true)), Nodes::Interleaved(2));
        assert_eq!(of(Ok(false)), Nodes::AsSet(2));
        assert_eq!(of(Err(std::io::ErrorKind::PermissionDenied.into())), Nodes::Local(2));
        assert_eq!(Nodes::Interleaved(2).to_string(), "2 nodes, whose pages are taken in turns");
    }
}
