//! What weights there are, in which file each lies, and the bytes of files that are mapped.

use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::{Disks, disk_of};
use super::plan::{Role, WeightUse};
use super::populate::MappedPart;
use super::{ALIGNMENT, MappedFile, Store, StoreError};
use crate::device::Device;
use crate::gguf::{Gguf, OpenedFile, Part, PartBytes, StaticBytes, TensorInfo, TensorType};
use crate::quant;

/// A registered weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(u32);

impl WeightId {
    pub(super) fn of(index: usize) -> WeightId {
        WeightId(index as u32)
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a weight lies.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) part: usize,
    pub(super) bytes: Range<usize>,
    pub(super) tensor: Arc<str>,
    pub(super) ty: TensorType,
    /// Elements of a row.
    pub(super) cols: usize,
    pub(super) role: Role,
    /// Its place in the order of a pass.
    pub(super) position: u64,
    /// Whether the system has been told that it will be read.
    announced: AtomicBool,
}

/// Weights of a lower number are read ahead before others: what the first pass needs in any case, then
/// experts, of which a token takes a part, then what it takes some rows of.
fn certainty(role: &Role) -> u8 {
    match role {
        Role::Once | Role::Always => 0,
        Role::Expert { .. } => 1,
        Role::Rows => 2,
    }
}

impl Extent {
    /// The layer that an expert is of.
    pub(super) fn layer(&self) -> usize {
        if let Role::Expert { layer, .. } = self.role { layer } else { 0 }
    }

    /// The share of tokens that are expected to want it, as a whole.
    pub(super) fn share(&self) -> f32 {
        if let Role::Expert { count, used, .. } = self.role { used as f32 / count as f32 } else { 1.0 }
    }

    /// Its rows, where it is a matrix that can be computed with.
    pub(super) fn rows(&self) -> Option<usize> {
        let format = quant::format(self.ty)?;
        let fits = self.cols > 0 && self.cols.is_multiple_of(self.ty.block_len() as usize);
        fits.then(|| self.bytes.len() / format.row_bytes(self.cols))
    }
}

/// The bytes of a file.
#[derive(Clone, Debug)]
pub(super) enum FileBytes {
    Mapped(Arc<MappedFile>),
    /// In memory whether they are read or not: part of the program.
    Memory {
        name: PathBuf,
        bytes: StaticBytes,
    },
}

impl FileBytes {
    fn open(part: &Part) -> Result<FileBytes, StoreError> {
        Ok(match &part.bytes {
            PartBytes::Memory(bytes) => FileBytes::Memory { name: part.path.clone(), bytes: *bytes },
            PartBytes::File(opened) => FileBytes::Mapped(Arc::new(MappedFile::of(Arc::clone(opened))?)),
        })
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            FileBytes::Mapped(file) => file.path(),
            FileBytes::Memory { name, .. } => name,
        }
    }

    /// Bytes of it, read without leaving pages of a mapped file behind.
    pub(super) fn read(&self, offset: usize, len: usize) -> std::io::Result<Vec<u8>> {
        match self {
            FileBytes::Memory { bytes, .. } => Ok(bytes[offset..offset + len].to_vec()),
            FileBytes::Mapped(file) => file.read(offset as u64, len),
        }
    }

    pub(super) fn is_memory(&self) -> bool {
        matches!(self, FileBytes::Memory { .. })
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(file) => file,
            FileBytes::Memory { bytes, .. } => bytes,
        }
    }
}

impl Store {
    /// Maps the files of a model; what is in memory already is used where it is.
    ///
    /// # Errors
    /// A file that cannot be mapped, or that has been written to since its header was read.
    pub fn open(gguf: &Gguf) -> Result<Store, StoreError> {
        let mut files = Vec::with_capacity(gguf.parts.len());
        for part in &gguf.parts {
            let file = FileBytes::open(part)?;
            if file.len() as u64 != part.file_bytes {
                return Err(StoreError::SizeChanged {
                    path: part.path.clone(),
                    expected: part.file_bytes,
                    found: file.len() as u64,
                });
            }
            if let FileBytes::Mapped(file) = &file {
                file.check_unchanged()?;
            }
            files.push(file);
        }
        let mut disks = Disks::default();
        let mut disk = |file: &FileBytes| match file {
            FileBytes::Mapped(file) => disks.index(disk_of(file.opened())),
            FileBytes::Memory { .. } => 0,
        };
        let disks = files.iter().map(&mut disk).collect();
        Ok(Store {
            files,
            disks,
            extents: Vec::new(),
            positions: 0,
            plan: None,
            streamed: None,
            populate: None,
            on_device: None,
        })
    }

    /// Registers bytes `range` (relative to the tensor's start) of a tensor as a weight. Weights are
    /// registered in the order in which a pass reads them.
    ///
    /// # Errors
    /// Where the range ends beyond the tensor's file.
    pub fn register(
        &mut self,
        tensor: &TensorInfo,
        range: Range<u64>,
        role: Role,
    ) -> Result<WeightId, StoreError> {
        let out_of_file = || StoreError::OutOfFile {
            path: self.files[tensor.part].path().to_owned(),
            tensor: tensor.name.clone(),
            offset: tensor.offset,
        };
        let at = |offset: u64| {
            let at = tensor.offset.checked_add(offset)?;
            usize::try_from(at).ok().filter(|&at| at <= self.files[tensor.part].len())
        };
        let start = at(range.start).ok_or_else(out_of_file)?;
        let end = at(range.end).filter(|&end| end >= start).ok_or_else(out_of_file)?;
        // The experts of a merged tensor share its name.
        let tensor_name = match self.extents.last() {
            Some(last) if *last.tensor == *tensor.name => Arc::clone(&last.tensor),
            _ => Arc::from(tensor.name.as_str()),
        };
        self.extents.push(Extent {
            part: tensor.part,
            bytes: start..end,
            tensor: tensor_name,
            ty: tensor.ty,
            cols: tensor.dims.first().map_or(1, |&cols| cols as usize),
            role,
            position: self.positions,
            announced: AtomicBool::new(false),
        });
        self.positions += 1;
        Ok(WeightId::of(self.extents.len() - 1))
    }

    /// Says that a weight of another role is also read as a whole at this place of every pass: an embedding
    /// that is the output matrix as well.
    pub fn read_always(&mut self, id: WeightId) {
        let extent = &mut self.extents[id.index()];
        (extent.role, extent.position) = (Role::Always, self.positions);
        self.positions += 1;
    }

    /// The bytes of a weight, before a pass: read without leaving pages of a mapped file behind.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn read_once(&self, id: WeightId) -> Result<Vec<u8>, StoreError> {
        let extent = &self.extents[id.index()];
        let read = self.files[extent.part].read(extent.bytes.start, extent.bytes.len());
        read.map_err(|error| self.read_error(id, extent.bytes.start as u64, Arc::new(error)))
    }

    pub(super) fn read_error(&self, id: WeightId, offset: u64, error: Arc<std::io::Error>) -> StoreError {
        let extent = &self.extents[id.index()];
        StoreError::read(self.files[extent.part].path(), &extent.tensor, offset, error)
    }

    /// The weights as a plan sees them, with a device where there is one.
    pub(super) fn uses(&self, device: Option<&Device>) -> Vec<WeightUse> {
        let span = |bytes: &Range<usize>| {
            (bytes.end.next_multiple_of(ALIGNMENT) - bytes.start / ALIGNMENT * ALIGNMENT) as u64
        };
        let device_bytes = |e: &Extent| {
            let computes = matches!(e.role, Role::Always | Role::Expert { .. }) && e.rows().is_some();
            let takes = computes && device.is_some_and(|device| device.takes(e.ty, e.cols));
            takes.then_some(e.bytes.len() as u64)
        };
        let use_of = |e: &Extent| WeightUse {
            role: e.role,
            bytes: e.bytes.len() as u64,
            span: span(&e.bytes),
            device_bytes: device_bytes(e),
        };
        self.extents.iter().map(use_of).collect()
    }

    /// Parts of mapped files by the disk that they lie on, in the order in which they are read ahead.
    pub(super) fn by_disk(&self) -> Vec<Vec<MappedPart>> {
        let in_file = |(i, e): &(usize, &Extent)| e.role != Role::Once && !self.is_placed_on_device(*i);
        let mut extents: Vec<&Extent> =
            self.extents.iter().enumerate().filter(in_file).map(|(_, e)| e).collect();
        extents.sort_by_key(|e| (certainty(&e.role), e.position));
        let mut parts = Vec::new();
        for extent in extents {
            let FileBytes::Mapped(file) = &self.files[extent.part] else { continue };
            let disk = self.disks[extent.part];
            parts.resize_with(parts.len().max(disk + 1), Vec::new);
            parts[disk].push((Arc::clone(file), extent.bytes.clone()));
        }
        parts
    }

    /// Whether the bytes that were read from mapped files so far were the files': asked after a pass, or
    /// whatever else reads mapped bytes, before what was made of them is used. Cheap: a flag and the size
    /// of each file.
    ///
    /// # Errors
    /// Where a file has been cut short or changed since it was opened, or could not be read.
    pub fn check_mapped(&self) -> Result<(), StoreError> {
        // Of a streamed model nothing is mapped but what is in memory anyway, or on a device that may fail.
        if self.streamed.is_some() && self.on_device.is_none() {
            return Ok(());
        }
        self.files.iter().enumerate().try_for_each(|(part, file)| match file {
            FileBytes::Memory { .. } => Ok(()),
            FileBytes::Mapped(file) => file.check(|offset| {
                let holds = |e: &&Extent| e.part == part && e.bytes.contains(&(offset as usize));
                self.extents.iter().find(holds).map(|e| &*e.tensor)
            }),
        })
    }

    /// The bytes of a weight in its mapped file, wherever the plan has them; see [`Store::check_mapped`].
    pub fn mapped(&self, id: WeightId) -> &[u8] {
        let extent = &self.extents[id.index()];
        &self.files[extent.part][extent.bytes.clone()]
    }

    /// Asks the system for a weight of a mapped file, once.
    pub(super) fn announce_mapped(&self, id: WeightId) {
        let extent = &self.extents[id.index()];
        if let FileBytes::Mapped(file) = &self.files[extent.part]
            && !extent.announced.swap(true, Ordering::Relaxed)
        {
            file.will_need(extent.bytes.start, extent.bytes.len());
            if let Some(populate) = &self.populate {
                populate.hurry(self.disks[extent.part], (Arc::clone(file), extent.bytes.clone()));
            }
        }
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|m| m.len() as u64).sum()
    }

    /// The files that weights are read from.
    pub fn opened_files(&self) -> impl Iterator<Item = &Arc<OpenedFile>> {
        self.files.iter().filter_map(|file| match file {
            FileBytes::Mapped(file) => Some(file.opened()),
            FileBytes::Memory { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_first_pass_needs_for_sure_is_read_ahead_first() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/moe-q4_k_m-00002-of-00003.gguf");
        let gguf = Gguf::open(&path).unwrap();
        let mut store = Store::open(&gguf).unwrap();
        let expert = Role::Expert { layer: 0, expert: 0, count: 8, used: 2 };
        let roles = [Role::Rows, Role::Once, expert, Role::Always, expert, Role::Always];
        for (tensor, role) in gguf.tensors.iter().zip(roles) {
            store.register(tensor, 0..tensor.bytes, role).unwrap();
        }
        // One disk, whatever files.
        let [parts] = &store.by_disk()[..] else { panic!("one disk") };
        let starts: Vec<usize> = parts.iter().map(|(_, range)| range.start).collect();
        let expected = [3, 5, 2, 4, 0].map(|i: usize| store.extents[i].bytes.start);
        assert_eq!(starts, expected);
    }
}
