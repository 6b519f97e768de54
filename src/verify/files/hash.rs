//! The hashes of a model: of its files, its metadata and its tensors.
//!
//! - file: all bytes of the file;
//! - tensor: the bytes of its data;
//! - metadata: for every key, in the order of their bytes, key, type and value as a GGUF file has them, but
//!   for those of the layout;
//! - model: for every tensor, in the order of their names, name, sizes and type as a GGUF file has them, then
//!   the hash of its data (XXH3's with its high byte first).
//!
//! So all but the files' are the same however a model is split or its data aligned.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;

use super::digest::{Algorithms, Digests, Hasher};
use super::{jobs, metadata};
use crate::gguf::{Gguf, TensorInfo};
use crate::store::{ModelReader, Piece, StoreError};

/// What is to be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    pub algorithms: Algorithms,
    pub files: bool,
    /// And with them metadata and model.
    pub tensors: bool,
}

/// The hashes of a model, as far as they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelDigests {
    /// In the order of the split.
    pub files: Vec<FileDigest>,
    pub metadata: Option<Digests>,
    pub model: Option<Digests>,
    /// In the order of their names.
    pub tensors: Vec<TensorDigest>,
}

/// The hashes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigest {
    /// Index in [`Gguf::parts`].
    pub part: usize,
    pub digests: Digests,
}

/// The hashes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDigest {
    /// Index in [`Gguf::tensors`].
    pub index: usize,
    pub digests: Digests,
}

/// Bytes of a read, and reads of a file that may be held in memory: together with [`FILES`] 64 MiB.
const READ: u64 = 4 << 20;
const READS: usize = 4;
/// Files that are hashed at a time.
const FILES: usize = 4;
/// Bytes of a read where tensors are hashed each on its own.
const TENSOR_READ: u64 = 2 << 20;

/// Hashes a model. `done` is told how many more bytes have been read. Every byte is read once.
///
/// # Errors
/// Files that cannot be read or have changed since their headers were read.
pub fn hash(gguf: &Gguf, covered: Covered, done: &(dyn Fn(u64) + Sync)) -> Result<ModelDigests, StoreError> {
    let reader = ModelReader::open(gguf)?;
    let mut digests = ModelDigests::default();
    if covered.files {
        let files = jobs::run(FILES.min(gguf.parts.len()), gguf.parts.len(), |(): &mut (), part| {
            hash_file(&reader, part, covered, done)
        })?;
        for (part, (file, tensors)) in files.into_iter().enumerate() {
            digests.files.push(FileDigest { part, digests: file });
            digests.tensors.extend(tensors);
        }
    } else if covered.tensors {
        let all = gguf.tensors.len();
        digests.tensors = jobs::run(jobs::threads(all), all, |piece: &mut Piece, index| {
            let digests = hash_tensor(&reader, &gguf.tensors[index], covered.algorithms, piece, done)?;
            Ok::<_, StoreError>(TensorDigest { index, digests })
        })?;
    }
    if covered.tensors {
        let name = |tensor: &TensorDigest| gguf.tensors[tensor.index].name.as_bytes();
        digests.tensors.sort_by(|a, b| name(a).cmp(name(b)));
        let parts = digests.tensors.iter().map(|tensor| (info(&gguf.tensors[tensor.index]), &tensor.digests));
        digests.model = Some(Hasher::of_digests(covered.algorithms, parts));
        digests.metadata = Some(metadata::hash(gguf.metadata(), covered.algorithms));
    }
    Ok(digests)
}

/// What a file says of a tensor, but for the place of its data.
fn info(tensor: &TensorInfo) -> Vec<u8> {
    let mut bytes = (tensor.name.len() as u64).to_le_bytes().to_vec();
    bytes.extend(tensor.name.as_bytes());
    bytes.extend((tensor.dims.len() as u32).to_le_bytes());
    bytes.extend(tensor.dims.iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend((tensor.ty as u32).to_le_bytes());
    bytes
}

fn hash_tensor(
    reader: &ModelReader<'_>,
    tensor: &TensorInfo,
    algorithms: Algorithms,
    piece: &mut Piece,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Digests, StoreError> {
    let mut hasher = Hasher::new(algorithms);
    for bytes in pieces(tensor.offset..tensor.offset + tensor.bytes, TENSOR_READ) {
        reader.read(tensor.part, bytes.clone(), piece)?;
        hasher.update(piece);
        done(bytes.end - bytes.start);
    }
    Ok(hasher.finish())
}

/// A range in pieces.
fn pieces(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let count = (range.end - range.start).div_ceil(most);
    (0..count).map(move |i| range.start + i * most..(range.start + (i + 1) * most).min(range.end))
}

/// Hashes a file as a whole and the tensors in it: each on a thread of its own, as a hash takes a byte after
/// the other.
fn hash_file(
    reader: &ModelReader<'_>,
    part: usize,
    covered: Covered,
    done: &(dyn Fn(u64) + Sync),
) -> Result<(Digests, Vec<TensorDigest>), StoreError> {
    let gguf = reader.gguf();
    let mut whole = Hasher::new(covered.algorithms);
    let mut tensors = TensorHashes::of(gguf, part, covered.algorithms);
    let mut takers: Vec<Taker<'_>> = vec![Box::new(|_, bytes| whole.update(bytes))];
    if covered.tensors {
        takers.push(Box::new(|at, bytes| tensors.take(at, bytes)));
    }
    let all = pieces(0..gguf.parts[part].file_bytes, READ);
    let read = |bytes: Range<u64>, piece: &mut Piece| {
        reader.read(part, bytes.clone(), piece)?;
        done(bytes.end - bytes.start);
        Ok(())
    };
    read_for(all, READS, takers, read)?;
    let tensors = if covered.tensors { tensors.finish() } else { Vec::new() };
    Ok((whole.finish(), tensors))
}

/// Who is given the bytes of a file, piece by piece, with the place of each.
type Taker<'a> = Box<dyn FnMut(u64, &[u8]) + Send + 'a>;

/// Reads ranges once for several takers, which run beside each other and beside the reads. So many pieces are
/// in memory at most.
fn read_for(
    ranges: impl Iterator<Item = Range<u64>>,
    most: usize,
    takers: Vec<Taker<'_>>,
    mut read: impl FnMut(Range<u64>, &mut Piece) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let (give_back, free) = mpsc::channel::<Piece>();
    for _ in 0..most {
        let _ = give_back.send(Piece::default()); // the other end is here
    }
    std::thread::scope(|scope| {
        let mut queues = Vec::with_capacity(takers.len());
        for mut take in takers {
            let (queue, pieces) = mpsc::channel::<(u64, Arc<Piece>)>();
            let give_back = give_back.clone();
            scope.spawn(move || {
                for (at, piece) in pieces {
                    take(at, &piece);
                    // The last one who has it; when all is read nobody waits for it.
                    let _ = Arc::into_inner(piece).map(|piece| give_back.send(piece));
                }
            });
            queues.push(queue);
        }
        drop(give_back);
        for bytes in ranges {
            // Without takers, which have panicked then, there is nothing to read for.
            let Ok(mut piece) = free.recv() else { break };
            read(bytes.clone(), &mut piece)?;
            // None is kept here: what the takers were done with first would be given back by nobody.
            let shares: Vec<_> = std::iter::repeat_n(Arc::new(piece), queues.len()).collect();
            if queues.iter().zip(shares).any(|(queue, piece)| queue.send((bytes.start, piece)).is_err()) {
                break;
            }
        }
        Ok(())
    })
}

/// The tensors of a file, hashed as its bytes come by.
struct TensorHashes<'a> {
    algorithms: Algorithms,
    /// In the order of their data, with their indexes.
    tensors: Vec<(usize, &'a TensorInfo)>,
    /// The first one that does not end before the bytes that come next.
    current: usize,
    hasher: Hasher,
    finished: Vec<TensorDigest>,
}

impl<'a> TensorHashes<'a> {
    fn of(gguf: &'a Gguf, part: usize, algorithms: Algorithms) -> TensorHashes<'a> {
        let mut tensors: Vec<_> = gguf.tensors.iter().enumerate().filter(|(_, t)| t.part == part).collect();
        // Of two at one place the first has no bytes.
        tensors.sort_by_key(|(_, tensor)| (tensor.offset, tensor.bytes));
        TensorHashes {
            algorithms,
            tensors,
            current: 0,
            hasher: Hasher::new(algorithms),
            finished: Vec::new(),
        }
    }

    /// Bytes of the file from `at` on; those before have come already.
    fn take(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        while let Some(&(index, tensor)) = self.tensors.get(self.current) {
            let last = tensor.offset + tensor.bytes;
            let (from, to) = (tensor.offset.max(at), last.min(end));
            if from < to {
                self.hasher.update(&bytes[(from - at) as usize..(to - at) as usize]);
            }
            if last > end {
                break;
            }
            self.end_tensor(index);
        }
    }

    fn end_tensor(&mut self, index: usize) {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(self.algorithms));
        self.finished.push(TensorDigest { index, digests: hasher.finish() });
        self.current += 1;
    }

    fn finish(self) -> Vec<TensorDigest> {
        assert_eq!(self.finished.len(), self.tensors.len(), "data lies within its file");
        self.finished
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whoever is done with a piece last gives it back, be the takers ever so much faster than the reader: a
    /// piece that is lost would leave it waiting for good. The more there are, the surer the takers are done
    /// between two instructions of the reader's.
    #[test]
    fn no_piece_is_lost() {
        const COUNT: u64 = 50_000;
        for takers in [1, 2] {
            let (ended, end) = mpsc::channel();
            std::thread::spawn(move || {
                let mut taken = vec![0; takers];
                let all = taken.iter_mut().map(|taken| -> Taker<'_> { Box::new(move |at, _| *taken += at) });
                let read = read_for((0..COUNT).map(|at| at..at + 1), 1, all.collect(), |_, _| Ok(()));
                ended.send((read.is_ok(), taken)).expect("it is waited for");
            });
            let (read, taken) = end.recv_timeout(Duration::from_secs(120)).expect("the reader has its piece");
            assert!(read);
            assert_eq!(taken, vec![COUNT * (COUNT - 1) / 2; takers]);
        }
    }
}
