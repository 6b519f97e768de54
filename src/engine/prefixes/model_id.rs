//! Which model it is: a hash of all its bytes, since a header says nothing of the weights.
//!
//! The hash of a file is computed once: a record of it lies in the cache's folder, by what the system says of
//! the file.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::folder::{Folder, MODEL_ENDING, hex};
use super::format::Hash;
use crate::gguf::{Gguf, OpenedFile, PartBytes};
use crate::store::available_memory_bytes;
use crate::store::os::{FileIdentity, Os, System};

const MAGIC: [u8; 8] = *b"WayModel";
const VERSION: u32 = 1;
/// Magic, version, what the system says of the file, the hash, a checksum.
const RECORD: usize = 8 + 4 + IDENTITY + 32 + 32;
const IDENTITY: usize = 4 * 8 + 4;

/// Bytes that are read at a time.
const STRETCH: usize = 1 << 20;
/// A file may be written again within the tick of its clock; one that is older cannot without a trace.
const SETTLED: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelId(pub(super) Hash);

/// What the system says of a file, as it stands in a record.
type Identity = [u8; IDENTITY];

/// How the hash of a model's files came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordedId {
    /// Nothing of them was read.
    Known,
    Computed,
}

impl ModelId {
    /// The hash in hexadecimal digits.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// The model of these files. `progress` is told how many bytes of how many have been read, and may break
    /// off, which is [`ErrorKind::Interrupted`].
    ///
    /// # Errors
    /// Files that cannot be read or have changed since they were opened. That a record cannot be written is
    /// no error.
    pub fn of(
        gguf: &Gguf,
        folder: &Folder,
        mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> io::Result<(ModelId, RecordedId)> {
        let all = gguf.parts.iter().map(|part| part.file_bytes).sum();
        let (mut hasher, mut done, mut recorded) = (blake3::Hasher::new(), 0, RecordedId::Known);
        for part in &gguf.parts {
            let hash = match &part.bytes {
                PartBytes::Memory(bytes) => *blake3::hash(bytes).as_bytes(),
                PartBytes::File(file) => {
                    let identity = identity(file);
                    match identity.as_ref().and_then(|identity| recall(folder, identity)) {
                        Some(hash) => hash,
                        None => {
                            recorded = RecordedId::Computed;
                            let hash = hash_file(file, |now| progress(done + now, all))?;
                            if let Some(identity) = identity.filter(|_| is_settled(file)) {
                                // The next run computes it once more.
                                let _ = record(folder, &identity, &hash);
                            }
                            hash
                        }
                    }
                }
            };
            hasher.update(&hash);
            done += part.file_bytes;
        }
        Ok((ModelId(*hasher.finalize().as_bytes()), recorded))
    }
}

/// The hash of an open file, which must be what it was when it was opened.
fn hash_file(opened: &OpenedFile, mut progress: impl FnMut(u64) -> ControlFlow<()>) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STRETCH];
    // A model that does not fit the memory would only drive out what is of use.
    let drops = available_memory_bytes().is_some_and(|available| available < opened.bytes());
    let mut done = 0;
    while done < opened.bytes() {
        let n = match Os::read_at(opened.file(), &mut buffer, done) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..n]);
        if drops {
            Os::drop_pages(opened.file(), done, n);
        }
        done += n as u64;
        if progress(done).is_break() {
            return Err(ErrorKind::Interrupted.into());
        }
    }
    opened.check_unchanged()?;
    Ok(*hasher.finalize().as_bytes())
}

/// When a file was last changed, where the system knows.
fn changed(file: &File) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
}

fn is_settled(opened: &OpenedFile) -> bool {
    changed(opened.file()).and_then(|time| time.elapsed().ok()).is_some_and(|age| age > SETTLED)
}

fn identity(opened: &OpenedFile) -> Option<Identity> {
    let FileIdentity { device, number } = Os::identity(opened.file()).ok()?;
    let since = changed(opened.file())?.duration_since(UNIX_EPOCH).ok()?;
    let numbers = [device, number, opened.bytes(), since.as_secs()].map(u64::to_le_bytes);
    [numbers.as_flattened(), &since.subsec_nanos().to_le_bytes()].concat().try_into().ok()
}

fn name(identity: &Identity) -> String {
    format!("{}.{MODEL_ENDING}", hex(blake3::hash(identity).as_bytes()))
}

/// Everything of a record but its checksum.
fn unchecked(identity: &Identity, hash: &Hash) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), identity, hash].concat()
}

fn record(folder: &Folder, identity: &Identity, hash: &Hash) -> io::Result<()> {
    let record = unchecked(identity, hash);
    folder.write(&name(identity), |out| {
        out.write_all(&record)?;
        out.write_all(blake3::hash(&record).as_bytes())
    })
}

/// The hash of a file, where there is a record of it that is whole.
fn recall(folder: &Folder, identity: &Identity) -> Option<Hash> {
    let name = name(identity);
    let mut bytes = Vec::with_capacity(RECORD + 1);
    folder.read(&name).ok()?.take(RECORD as u64 + 1).read_to_end(&mut bytes).ok()?;
    let (record, checksum) = bytes.split_last_chunk::<32>()?;
    let (_, hash) = record.split_last_chunk::<32>()?;
    let whole = record == unchecked(identity, hash) && checksum == blake3::hash(record).as_bytes();
    whole.then(|| folder.touch(&name, SystemTime::now()));
    whole.then_some(*hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> Vec<u8> {
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dense-q8_0.gguf")).unwrap()
    }

    fn id(path: &std::path::Path, folder: &Folder) -> (ModelId, RecordedId) {
        ModelId::of(&Gguf::open(path).unwrap(), folder, |_, _| ControlFlow::Continue(())).unwrap()
    }

    fn written(path: &std::path::Path, bytes: &[u8], age: u64) {
        std::fs::write(path, bytes).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }

    #[test]
    fn every_byte_counts_and_files_are_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&dir.path().join("cache")).unwrap();
        let [a, b] = ["a.gguf", "b.gguf"].map(|name| dir.path().join(name));
        let mut bytes = fixture();
        written(&a, &bytes, 100);
        let (first, how) = id(&a, &folder);
        assert_eq!(how, RecordedId::Computed);
        assert_eq!(id(&a, &folder), (first, RecordedId::Known));
        // The same bytes elsewhere are the same model.
        written(&b, &bytes, 100);
        assert_eq!(id(&b, &folder), (first, RecordedId::Computed));
        // A weight that is another makes it another, whether in the same file or in a new one.
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        written(&a, &bytes, 50);
        let (other, how) = id(&a, &folder);
        assert!(other != first && how == RecordedId::Computed);
        // What was written a moment ago may be written again without a trace.
        written(&a, &bytes, 0);
        for _ in 0..2 {
            assert_eq!(id(&a, &folder), (other, RecordedId::Computed));
        }
    }

    #[test]
    fn a_record_that_is_not_whole_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&dir.path().join("cache")).unwrap();
        let path = dir.path().join("a.gguf");
        written(&path, &fixture(), 100);
        let (truth, _) = id(&path, &folder);
        let record = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let whole = std::fs::read(&record).unwrap();
        assert_eq!(whole.len(), RECORD);
        for at in 0..RECORD {
            let mut altered = whole.clone();
            altered[at] ^= 0x10;
            std::fs::write(&record, &altered).unwrap();
            assert_eq!(id(&path, &folder), (truth, RecordedId::Computed), "byte {at}");
            assert_eq!(std::fs::read(&record).unwrap(), whole, "it is written anew");
        }
        for cut in [0, 1, 32, RECORD - 1] {
            std::fs::write(&record, &whole[..cut]).unwrap();
            assert_eq!(id(&path, &folder), (truth, RecordedId::Computed), "{cut} bytes");
        }
        std::fs::write(&record, [&whole[..], b"x"].concat()).unwrap();
        assert_eq!(id(&path, &folder), (truth, RecordedId::Computed), "a byte more");
        assert_eq!(id(&path, &folder), (truth, RecordedId::Known));
    }

    #[test]
    fn it_can_be_broken_off() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let gguf = Gguf::open(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dense-q8_0.gguf")).unwrap();
        let broken = ModelId::of(&gguf, &folder, |_, _| ControlFlow::Break(()));
        assert_eq!(broken.unwrap_err().kind(), ErrorKind::Interrupted);
    }
}
