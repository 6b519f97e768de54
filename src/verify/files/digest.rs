//! Hashes of bytes, by one algorithm or both.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::Xxh3;

/// A way to hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// XXH3 of 64 bits with seed 0: finds damage, at the speed of memory.
    Xxh3,
    /// SHA-256: nobody can make other bytes with the same hash.
    Sha256,
}

impl Algorithm {
    /// `xxh3` or `sha256`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Xxh3 => "xxh3",
            Algorithm::Sha256 => "sha256",
        }
    }
}

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithms {
    pub xxh3: bool,
    pub sha256: bool,
}

impl Algorithms {
    pub const BOTH: Algorithms = Algorithms { xxh3: true, sha256: true };

    /// This one alone.
    pub fn only(algorithm: Algorithm) -> Algorithms {
        Algorithms { xxh3: algorithm == Algorithm::Xxh3, sha256: algorithm == Algorithm::Sha256 }
    }
}

/// The hashes of some bytes, as far as they were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    pub xxh3: Option<u64>,
    pub sha256: Option<[u8; 32]>,
}

impl Digests {
    /// The hash in hexadecimal digits, as other programs print it.
    pub fn hex(&self, algorithm: Algorithm) -> Option<String> {
        match algorithm {
            Algorithm::Xxh3 => self.xxh3.map(|hash| format!("{hash:016x}")),
            Algorithm::Sha256 => self.sha256.map(|hash| hex(&hash)),
        }
    }

    /// Which there are.
    pub fn algorithms(&self) -> Algorithms {
        Algorithms { xxh3: self.xxh3.is_some(), sha256: self.sha256.is_some() }
    }

    /// The first of them in which both have a hash and not the same one.
    pub fn conflict(&self, other: &Digests) -> Option<Algorithm> {
        let differs = |algorithm: &Algorithm| {
            let hashes = self.hex(*algorithm).zip(other.hex(*algorithm));
            hashes.is_some_and(|(a, b)| a != b)
        };
        [Algorithm::Sha256, Algorithm::Xxh3].into_iter().find(differs)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes all that is written
        text
    })
}

/// Hashes that are being made.
pub struct Hasher {
    xxh3: Option<Box<Xxh3>>,
    sha256: Option<Sha256>,
}

impl Hasher {
    pub fn new(algorithms: Algorithms) -> Hasher {
        Hasher {
            xxh3: algorithms.xxh3.then(|| Box::new(Xxh3::new())),
            sha256: algorithms.sha256.then(Sha256::new),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.xxh3 {
            hasher.update(bytes);
        }
        if let Some(hasher) = &mut self.sha256 {
            hasher.update(bytes);
        }
    }

    pub fn finish(self) -> Digests {
        Digests {
            xxh3: self.xxh3.map(|hasher| hasher.digest()),
            sha256: self.sha256.map(|hasher| hasher.finalize().into()),
        }
    }

    /// Hashes each algorithm's digests of parts by that algorithm, `before` each of which come these bytes.
    pub fn of_digests<'d>(
        algorithms: Algorithms,
        parts: impl Iterator<Item = (Vec<u8>, &'d Digests)>,
    ) -> Digests {
        let mut xxh3 = Hasher::new(Algorithms { sha256: false, ..algorithms });
        let mut sha256 = Hasher::new(Algorithms { xxh3: false, ..algorithms });
        for (before, digests) in parts {
            for hasher in [&mut xxh3, &mut sha256] {
                hasher.update(&before);
            }
            xxh3.update(&digests.xxh3.unwrap_or_default().to_be_bytes());
            sha256.update(&digests.sha256.unwrap_or_default());
        }
        Digests { xxh3: xxh3.finish().xxh3, sha256: sha256.finish().sha256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What xxhsum -H3 and sha256sum print.
    #[test]
    fn hashes_are_those_of_other_programs() {
        let of = |parts: &[&[u8]]| {
            let mut hasher = Hasher::new(Algorithms::BOTH);
            parts.iter().for_each(|part| hasher.update(part));
            hasher.finish()
        };
        let empty = of(&[]);
        assert_eq!(empty.hex(Algorithm::Xxh3).unwrap(), "2d06800538d394c2");
        assert_eq!(
            empty.hex(Algorithm::Sha256).unwrap(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            of(&[b"a", b"bc"]).hex(Algorithm::Sha256).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(of(&[b"a", b"bc"]).hex(Algorithm::Xxh3).unwrap(), "78af5f94892f3950");
    }
}
