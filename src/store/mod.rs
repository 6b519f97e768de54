//! RESIDENCY: where a weight's bytes are.
//!
//! The model registers every weight that it will read (a tensor, or one expert of a merged tensor), says what it is
//! read for, and gets a [`WeightId`]; in the forward pass it says [`Store::will_need`] and then [`Store::acquire_some`],
//! which gives guards that dereference to the bytes. Whether they are mapped, pinned, cached or on their way from the disk
//! is the store's business: [`Store::settle`] plans it for a budget of memory.
//!
//! Policy is pure and apart from mechanism: [`plan`] says what goes where, [`cache`] which expert leaves, [`ring`] where a
//! stream's next weight goes, [`requests`] what is to be read next; [`streamed`] has the lock, the memory and the threads,
//! [`disk`] the reads.

mod arena;
mod budget;
mod cache;
mod disk;
mod error;
mod file;
mod os;
mod plan;
mod populate;
mod requests;
mod ring;
#[cfg(unix)]
mod sigbus;
mod speed;
mod stats;
mod streamed;
mod zeroed;

use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::gguf::{Gguf, Part, StaticBytes, TensorInfo};
pub use budget::available_memory_bytes;
pub use disk::{ALIGNMENT, AlignedBuffer, OpenFile, ReadAt, open_file};
pub use error::StoreError;
pub use file::MappedFile;
pub use os::{confine, peak_rss_bytes, private_bytes};
pub use plan::{Place, Plan, Role, Shortage, SlotClass, WeightUse};
use populate::Populate;
use requests::{Fault, Weight};
pub use speed::read_speed;
pub use stats::ResidencyStats;
use streamed::{Streamed, StreamedFile};
pub use zeroed::{OutOfMemory, zeroed};

/// A registered weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(u32);

impl WeightId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a weight lies.
#[derive(Debug)]
struct Extent {
    part: usize,
    bytes: Range<usize>,
    tensor: Arc<str>,
    role: Role,
    /// Its place in the order of a pass.
    position: u64,
    /// Whether the system has been told that it will be read.
    announced: AtomicBool,
}

/// The bytes of a file.
#[derive(Debug)]
enum FileBytes {
    Mapped(Arc<MappedFile>),
    /// In memory whether they are read or not: part of the program.
    Memory {
        name: PathBuf,
        bytes: StaticBytes,
    },
}

impl FileBytes {
    fn open(part: &Part) -> Result<FileBytes, StoreError> {
        Ok(match part.memory {
            Some(bytes) => FileBytes::Memory { name: part.path.clone(), bytes },
            None => FileBytes::Mapped(Arc::new(MappedFile::open(&part.path)?)),
        })
    }

    fn path(&self) -> &Path {
        match self {
            FileBytes::Mapped(file) => file.path(),
            FileBytes::Memory { name, .. } => name,
        }
    }

    fn is_memory(&self) -> bool {
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

/// The bytes of all weights of a model.
#[derive(Debug)]
pub struct Store {
    files: Vec<FileBytes>,
    extents: Vec<Extent>,
    positions: u64,
    plan: Option<Plan>,
    streamed: Option<Streamed>,
    /// Held for its end.
    _populate: Option<Populate>,
}

impl Store {
    /// Maps the files of a model; what is in memory already is used where it is.
    ///
    /// # Errors
    /// A file that cannot be opened or mapped, or that has changed its size since its header was read.
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
            files.push(file);
        }
        Ok(Store { files, extents: Vec::new(), positions: 0, plan: None, streamed: None, _populate: None })
    }

    /// Registers bytes `range` (relative to the tensor's start) of a tensor as a weight. Weights are registered in
    /// the order in which a pass reads them.
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
            role,
            position: self.positions,
            announced: AtomicBool::new(false),
        });
        self.positions += 1;
        Ok(WeightId(self.extents.len() as u32 - 1))
    }

    /// Says that a weight of another role is also read as a whole at this place of every pass: an embedding that is
    /// the output matrix as well.
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
        match &self.files[extent.part] {
            FileBytes::Memory { bytes, .. } => Ok(bytes[extent.bytes.clone()].to_vec()),
            FileBytes::Mapped(file) => {
                let read = file.read(extent.bytes.start as u64, extent.bytes.len());
                read.map_err(|error| self.read_error(id, extent.bytes.start as u64, Arc::new(error)))
            }
        }
    }

    fn read_error(&self, id: WeightId, offset: u64, error: Arc<std::io::Error>) -> StoreError {
        let extent = &self.extents[id.index()];
        StoreError::read(self.files[extent.part].path(), &extent.tensor, offset, error)
    }

    /// The weights as a plan sees them.
    fn uses(&self) -> Vec<WeightUse> {
        let span = |bytes: &Range<usize>| {
            (bytes.end.next_multiple_of(ALIGNMENT) - bytes.start / ALIGNMENT * ALIGNMENT) as u64
        };
        let use_of =
            |e: &Extent| WeightUse { role: e.role, bytes: e.bytes.len() as u64, span: span(&e.bytes) };
        self.extents.iter().map(use_of).collect()
    }

    /// Plans where all weights go in so many bytes of memory.
    ///
    /// # Errors
    /// Where they are too few to run the model.
    pub fn plan_for(&self, budget: u64) -> Result<Plan, Shortage> {
        let in_memory: Vec<bool> = self.extents.iter().map(|e| self.files[e.part].is_memory()).collect();
        let uses = self.uses();
        if cfg!(unix) { plan::plan(&uses, &in_memory, budget) } else { Ok(plan::mapped(&uses, budget)) }
    }

    /// Puts the weights where a plan says. What is mapped is read ahead in the background; of what is not, reads begin.
    /// Waits for neither.
    ///
    /// # Errors
    /// Where files cannot be opened, or memory or threads cannot be had.
    pub fn settle(&mut self, plan: Plan, open: OpenFile<'_>) -> Result<(), StoreError> {
        if plan.is_mapped() {
            self._populate = Some(Populate::start(self.in_order()));
        } else {
            self.streamed = Some(self.stream(&plan, open)?);
        }
        self.plan = Some(plan);
        Ok(())
    }

    /// Parts of mapped files, in the order of a pass.
    fn in_order(&self) -> Vec<(Arc<MappedFile>, Range<usize>)> {
        let mut extents: Vec<&Extent> = self.extents.iter().filter(|e| e.role != Role::Once).collect();
        extents.sort_by_key(|e| e.position);
        let mapped = |e: &Extent| match &self.files[e.part] {
            FileBytes::Mapped(file) => Some((Arc::clone(file), e.bytes.clone())),
            FileBytes::Memory { .. } => None,
        };
        extents.into_iter().filter_map(mapped).collect()
    }

    fn stream(&self, plan: &Plan, open: OpenFile<'_>) -> Result<Streamed, StoreError> {
        let mut disks: Vec<u64> = Vec::new();
        let mut files = Vec::with_capacity(self.files.len());
        for file in &self.files {
            if file.is_memory() {
                files.push(None);
                continue;
            }
            let path = file.path();
            let failed = |error| StoreError::open(path, error);
            let opened = open(path).map_err(failed)?;
            if let FileBytes::Mapped(mapped) = file
                && !mapped.is_at_its_path().map_err(failed)?
            {
                return Err(StoreError::Replaced { path: path.to_owned() });
            }
            let file = opened;
            let number = file.disk();
            let disk = disks.iter().position(|&d| d == number).unwrap_or(disks.len());
            if disk == disks.len() {
                disks.push(number);
            }
            files.push(Some(StreamedFile { file, disk }));
        }
        let weight = |e: &Extent| Weight {
            part: e.part,
            disk: files[e.part].as_ref().map_or(0, |file: &StreamedFile| file.disk),
            bytes: e.bytes.start as u64..e.bytes.end as u64,
            position: e.position,
            layer: if let Role::Expert { layer, .. } = e.role { layer } else { 0 },
            share: if let Role::Expert { count, used, .. } = e.role {
                used as f32 / count as f32
            } else {
                1.0
            },
        };
        let weights = self.extents.iter().map(weight).collect();
        Streamed::start(weights, files, plan)
    }

    /// The plan that the weights were settled by.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Bytes that pass through the ring in each pass.
    pub fn streamed_bytes(&self) -> u64 {
        self.plan.as_ref().map_or(0, |plan| plan.streamed_bytes(&self.uses()))
    }

    /// Whether every pass reads the same weights from the disk, so that it costs that reading and further tokens in it
    /// next to nothing.
    pub fn streams_every_pass(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.ring_bytes > 0 && plan.classes.is_empty())
    }

    /// Whether reads go around the page cache; `None` where files are mapped.
    pub fn reads_directly(&self) -> Option<bool> {
        self.streamed.as_ref().map(Streamed::is_direct)
    }

    /// What has been read and waited for.
    pub fn stats(&self) -> ResidencyStats {
        self.streamed.as_ref().map(Streamed::stats).unwrap_or_default()
    }

    /// Empties the cache of experts and sets the counters back.
    pub fn empty_cache(&self) {
        if let Some(streamed) = &self.streamed {
            streamed.empty_cache();
        }
    }

    /// A pass over the whole model begins.
    pub fn begin_pass(&self) {
        if let Some(streamed) = &self.streamed {
            streamed.begin_pass();
        }
    }

    /// The part of the streamed weights that is responsible for a weight.
    fn streamed(&self, id: WeightId) -> Option<&Streamed> {
        let streamed = self.streamed.as_ref()?;
        let in_file = self.plan.as_ref().is_some_and(|plan| plan.places[id.index()] != Place::Mapped);
        in_file.then_some(streamed)
    }

    /// Says that these weights will be read soon, in this order. Never blocks.
    pub fn will_need(&self, ids: impl IntoIterator<Item = WeightId>) {
        if let Some(streamed) = &self.streamed {
            let ids: Vec<usize> = ids.into_iter().map(WeightId::index).collect();
            return streamed.will_need(&ids);
        }
        for id in ids {
            let extent = &self.extents[id.index()];
            if let FileBytes::Mapped(file) = &self.files[extent.part]
                && !extent.announced.swap(true, Ordering::Relaxed)
            {
                file.will_need(extent.bytes.start, extent.bytes.len());
            }
        }
    }

    /// Says that these weights may be read soon. Reads nothing where it is not certain to be free. Never blocks.
    pub fn may_need(&self, ids: impl IntoIterator<Item = WeightId>) {
        if let Some(streamed) = &self.streamed {
            streamed.may_need(&ids.into_iter().map(WeightId::index).collect::<Vec<_>>());
        }
    }

    /// Whether a weight can be had without waiting.
    pub fn is_resident(&self, id: WeightId) -> bool {
        self.streamed(id).is_none_or(|streamed| streamed.is_resident(id.index()))
    }

    /// Those of some weights that are in memory, with their index in `ids`; where none is, waits for the first. Use
    /// and drop them before asking for the rest.
    ///
    /// # Errors
    /// Where one of them cannot be read.
    pub fn acquire_some(&self, ids: &[WeightId]) -> Result<Vec<(usize, Guard<'_>)>, StoreError> {
        let mapped = |id: &WeightId| self.streamed(*id).is_none();
        if ids.iter().all(mapped) {
            return Ok(ids
                .iter()
                .map(|&id| Guard { bytes: self.mapped(id), held: None })
                .enumerate()
                .collect());
        }
        let (mut guards, mut others) = (Vec::new(), Vec::new());
        for (i, &id) in ids.iter().enumerate() {
            match self.streamed(id) {
                None => guards.push((i, Guard { bytes: self.mapped(id), held: None })),
                Some(_) => others.push(i),
            }
        }
        let Some(streamed) = self.streamed.as_ref().filter(|_| guards.is_empty()) else { return Ok(guards) };
        let wanted: Vec<usize> = others.iter().map(|&i| ids[i].index()).collect();
        let held = streamed.hold_some(&wanted).map_err(|fault| self.fault(&fault))?;
        for i in held {
            // SAFETY: it is held until the guard is dropped.
            let bytes = unsafe { streamed.bytes(wanted[i]) };
            guards.push((others[i], Guard { bytes, held: Some((streamed, wanted[i])) }));
        }
        Ok(guards)
    }

    fn fault(&self, fault: &Arc<Fault>) -> StoreError {
        let error = std::io::Error::new(fault.error.kind(), fault.error.to_string());
        self.read_error(WeightId(fault.weight as u32), fault.offset, Arc::new(error))
    }

    /// The bytes of a weight, for as long as the guard lives.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn acquire(&self, id: WeightId) -> Result<Guard<'_>, StoreError> {
        let mut guards = self.acquire_some(&[id])?;
        Ok(guards.remove(0).1)
    }

    /// Whether the bytes that were read from mapped files so far were the files': asked after a pass, or whatever else
    /// reads mapped bytes, before what was made of them is used. Cheap: a flag and the size of each file.
    ///
    /// # Errors
    /// Where a file has been cut short since it was opened, or could not be read.
    pub fn check_mapped(&self) -> Result<(), StoreError> {
        // Of a streamed model nothing is mapped but what is in memory anyway.
        if self.streamed.is_some() {
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

    /// Bytes `range` of a weight of which only parts are read; `scratch` is where they may be put.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn read_part<'s>(
        &'s self,
        id: WeightId,
        range: Range<usize>,
        scratch: &'s mut AlignedBuffer,
    ) -> Result<&'s [u8], StoreError> {
        let Some(streamed) = self.streamed(id) else { return Ok(&self.mapped(id)[range]) };
        let extent = &self.extents[id.index()];
        assert!(range.end <= extent.bytes.len(), "a part outside of its weight");
        if matches!(extent.role, Role::Always) && streamed.is_resident(id.index()) {
            let guard = self.acquire(id)?;
            scratch
                .resize(range.len())
                .map_err(|error| self.read_error(id, extent.bytes.start as u64, Arc::new(error)))?;
            scratch.as_mut().copy_from_slice(&guard[range]);
            let read: &AlignedBuffer = scratch;
            return Ok(read.as_ref());
        }
        let (start, end) = (extent.bytes.start + range.start, extent.bytes.start + range.end);
        let within = streamed
            .read(extent.part, (start as u64, end as u64), scratch)
            .map_err(|error| self.read_error(id, start as u64, Arc::new(error)))?;
        let read: &AlignedBuffer = scratch;
        Ok(&read.as_ref()[within])
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|m| m.len() as u64).sum()
    }

    /// The files that weights are read from.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().filter(|file| !file.is_memory()).map(FileBytes::path)
    }
}

/// Holds a weight's bytes where they are.
#[derive(Debug)]
pub struct Guard<'a> {
    bytes: &'a [u8],
    held: Option<(&'a Streamed, usize)>,
}

impl Deref for Guard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some((streamed, id)) = self.held {
            streamed.release(id);
        }
    }
}
