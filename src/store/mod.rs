//! RESIDENCY: where a weight's bytes are.
//!
//! The model registers every weight that it will read (a tensor, or one expert's part of a merged tensor),
//! says what it is read for, and gets a [`WeightId`]; in the forward pass it says [`Store::will_need`] and
//! then [`Store::acquire_some`], which gives guards that dereference to the bytes. Whether they are mapped,
//! pinned, cached or on their way from the disk is the store's business: [`Store::settle`] plans it for a
//! budget of memory.
//!
//! [`registry`] knows the weights and their files. Policy is pure and apart from mechanism: [`plan`] says
//! what goes where, [`cache`] which expert leaves, [`ring`] where a stream's next weight goes, [`requests`]
//! what is to be read next; [`replay`] judges them on recorded runs. [`streamed`] has the lock, the memory
//! and the threads, [`disk`] the reads; [`on_device`] has what a device holds. What differs from system to
//! system is in [`os`].

mod arena;
mod cache;
mod disk;
mod error;
mod file;
mod model_reader;
mod nodes;
mod on_device;
pub(crate) mod os;
mod plan;
mod populate;
mod registry;
mod replay;
mod requests;
mod ring;
mod speed;
mod stats;
mod streamed;
mod zeroed;

use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::device::{Device, DeviceError, DeviceMatrix, DeviceSlice};
use crate::gguf::OpenedFile;
use disk::Disks;
pub use disk::{ALIGNMENT, AlignedBuffer, OpenFile, ReadAt, open_cached, open_file};
pub use error::StoreError;
pub use file::MappedFile;
pub use model_reader::{ModelReader, Piece};
pub use nodes::Nodes;
pub use on_device::{DeviceStats, OnFailure};
use on_device::{OnDevice, Source};
pub(crate) use os::TerminalMode;
pub use os::{MemoryLimit, Processors};
use os::{Os, System};
pub use plan::{DeviceBytes, DevicePlan, Place, Plan, Role, Shortage, SlotClass, WeightUse, disk_seconds};
use populate::Populate;
pub use registry::WeightId;
use registry::{Extent, FileBytes};
pub use replay::RoutingTrace;
pub use requests::Guesses;
use requests::{Failure, Weight};
pub use speed::{ReadWay, read_speed_by, read_speeds};
pub use stats::ResidencyStats;
pub(crate) use streamed::after_wait;
#[cfg(test)]
pub(crate) use streamed::wait_is_over;
use streamed::{Hold, Streamed, StreamedFile};
pub use zeroed::{OutOfMemory, zeroed};

/// Memory in bytes that can be had without swapping: what the system has available, or less where a limit on
/// this process or its group allows less. `None` where the system does not say.
pub fn available_memory_bytes() -> Option<u64> {
    Os::available_memory_bytes()
}

/// Memory in bytes that the machine has; `None` where the system does not say.
pub fn total_memory_bytes() -> Option<u64> {
    Os::total_memory_bytes()
}

/// Limits to the memory of this process below what the machine has, as far as they are known.
pub fn memory_limits() -> Vec<MemoryLimit> {
    Os::memory_limits()
}

/// For whom the system makes large pages of memory, in its own word; `None` where it does not say.
pub fn large_pages() -> Option<String> {
    Os::large_pages()
}

/// Bytes that may still be written to the file system of a path; `None` where the system does not say.
pub fn free_disk_bytes(path: &Path) -> Option<u64> {
    Os::free_disk_bytes(path)
}

/// The most memory in bytes that this process has had at a time, mapped file pages included; `None` where the
/// system does not say.
pub fn peak_rss_bytes() -> Option<u64> {
    Os::peak_rss_bytes()
}

/// Memory in bytes that this process has for itself now, file pages left out; `None` where the system does
/// not say.
pub fn private_bytes() -> Option<u64> {
    Os::private_bytes()
}

/// Whether an error of writing says that nobody reads any more.
pub fn is_closed_pipe(error: &std::io::Error) -> bool {
    Os::is_closed_pipe(error)
}

/// Bounds what this process may take: memory of its own in bytes, with what it has; time of its processors
/// from now on. There is no way back. macOS bounds time only.
///
/// # Errors
/// What the system says.
pub fn confine(memory: u64, time: Duration) -> std::io::Result<()> {
    Os::confine(memory, time)
}

/// Installs no handler for reads of mapped files that fail: for programs that handle SIGBUS, or exceptions on
/// Windows, themselves. Called before the first model is loaded. A model's file that is cut short then ends
/// the process, unless the program has an answer. Otherwise such reads become errors of the pass, and signals
/// of anything else go to the handler that was there before.
pub fn leave_faults_alone() {
    os::leave_faults_alone();
}

/// Whether two paths lead to one file. One that is not there is no other's.
pub fn same_file(a: &Path, b: &Path) -> bool {
    match (Os::identity_at(a), Os::identity_at(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b)),
    }
}

/// A disk, and what a plan has of it to read.
#[derive(Clone, Debug)]
pub struct DiskLoad {
    /// The largest of the model's files on it.
    pub largest: Arc<OpenedFile>,
    /// Bytes that a token is expected to read from it.
    pub bytes_per_token: f64,
}

/// The bytes of all weights of a model.
#[derive(Debug)]
pub struct Store {
    files: Vec<FileBytes>,
    /// The disk of each file that is not in memory, as an index.
    disks: Vec<usize>,
    extents: Vec<Extent>,
    positions: u64,
    plan: Option<Plan>,
    streamed: Option<Streamed>,
    populate: Option<Populate>,
    on_device: Option<OnDevice>,
}

/// A device for weights.
pub struct OfDevice {
    pub device: Arc<Device>,
    pub on_failure: OnFailure,
}

impl Store {
    /// Plans where all weights go in so many bytes of memory.
    ///
    /// # Errors
    /// Where they are too few to run the model.
    pub fn plan_for(&self, budget: u64) -> Result<Plan, Shortage> {
        self.plan_with(budget, None)
    }

    /// The same with bytes of a device.
    ///
    /// # Errors
    /// As [`Store::plan_for`].
    pub fn plan_with(&self, budget: u64, device: Option<(&Device, DeviceBytes)>) -> Result<Plan, Shortage> {
        let in_memory: Vec<bool> = self.extents.iter().map(|e| self.files[e.part].is_memory()).collect();
        let uses = self.uses(device.map(|(device, _)| device));
        plan::plan(&uses, &in_memory, budget, device.map(|(_, bytes)| bytes))
    }

    /// Puts the weights where a plan says, wherever they were before. What is mapped is read ahead in the
    /// background, and so is what goes to the device that the plan is for; of what is not, reads begin. Waits
    /// for none of it.
    ///
    /// # Errors
    /// Where files cannot be opened, or memory or threads cannot be had; [`StoreError::Device`] where the
    /// device has less room than the plan says, or fails: then nothing has changed but that all is mapped.
    pub fn settle(
        &mut self,
        plan: Plan,
        open: OpenFile<'_>,
        device: Option<OfDevice>,
    ) -> Result<(), StoreError> {
        (self.plan, self.streamed, self.populate, self.on_device) = (None, None, None, None);
        let streamed = if plan.is_mapped() { None } else { Some(self.stream(&plan, open)?) };
        if let (Some(OfDevice { device, on_failure }), Some(on_device)) = (device, &plan.device) {
            let resident = streamed.as_ref().map(Streamed::resident);
            let sources = self.sources();
            self.on_device = Some(OnDevice::start(device, sources, &plan, on_device, resident, on_failure)?);
        }
        self.plan = Some(plan);
        if streamed.is_none() {
            self.populate = Some(Populate::start(self.by_disk()));
        }
        self.streamed = streamed;
        Ok(())
    }

    /// Where the bytes of what may be on a device come from.
    fn sources(&self) -> Vec<Source> {
        let source = |e: &Extent| Source {
            file: self.files[e.part].clone(),
            range: e.bytes.clone(),
            ty: e.ty,
            rows: e.rows().unwrap_or(0),
            cols: e.cols,
            layer: e.layer(),
            share: e.share(),
        };
        self.extents.iter().map(source).collect()
    }

    fn stream(&self, plan: &Plan, open: OpenFile<'_>) -> Result<Streamed, StoreError> {
        let mut disks = Disks::default();
        let mut files = Vec::with_capacity(self.files.len());
        for file in &self.files {
            let FileBytes::Mapped(mapped) = file else {
                files.push(None);
                continue;
            };
            let file = open(mapped.opened()).map_err(|error| StoreError::open(file.path(), error))?;
            let disk = disks.index(file.disk());
            files.push(Some(StreamedFile { file, disk }));
        }
        let weight = |e: &Extent| Weight {
            part: e.part,
            disk: files[e.part].as_ref().map_or(0, |file: &StreamedFile| file.disk),
            bytes: e.bytes.start as u64..e.bytes.end as u64,
            position: e.position,
            layer: e.layer(),
            share: e.share(),
        };
        let weights = self.extents.iter().map(weight).collect();
        Streamed::start(weights, files, plan)
    }

    /// The disks that weights lie on, in the order of the files, and what a plan has of them to read.
    pub fn disk_loads(&self, plan: &Plan) -> Vec<DiskLoad> {
        let uses = self.uses(None);
        let mut bytes = vec![0.0; self.files.len()];
        self.extents.iter().zip(plan.disk_bytes_of(&uses)).for_each(|(e, b)| bytes[e.part] += b);
        let mut loads = Vec::<DiskLoad>::new();
        for ((file, &disk), bytes_per_token) in self.files.iter().zip(&self.disks).zip(bytes) {
            let FileBytes::Mapped(mapped) = file else { continue };
            let opened = Arc::clone(mapped.opened());
            match loads.get_mut(disk) {
                None => loads.push(DiskLoad { largest: opened, bytes_per_token }),
                Some(load) => {
                    load.bytes_per_token += bytes_per_token;
                    if opened.bytes() > load.largest.bytes() {
                        load.largest = opened;
                    }
                }
            }
        }
        loads
    }

    /// The plan that the weights were settled by.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Bytes that pass through the ring in each pass.
    pub fn streamed_bytes(&self) -> u64 {
        self.plan.as_ref().map_or(0, |plan| plan.streamed_bytes(&self.uses(None)))
    }

    /// Whether every pass reads the same weights from the disk, so that it costs that reading and further
    /// tokens in it next to nothing.
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
        if let Some(on_device) = &self.on_device {
            on_device.begin_pass();
        }
        if let Some(streamed) = &self.streamed {
            streamed.begin_pass();
        }
    }

    /// The part of the streamed weights that is responsible for a weight.
    fn streamed(&self, id: WeightId) -> Option<&Streamed> {
        let streamed = self.streamed.as_ref()?;
        let place = self.plan.as_ref().map(|plan| plan.places[id.index()]);
        let in_file = place.is_some_and(|place| !matches!(place, Place::Mapped | Place::Device));
        in_file.then_some(streamed)
    }

    fn is_placed_on_device(&self, weight: usize) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.places[weight] == Place::Device)
    }

    /// The device that has some of the weights, where there is one.
    pub fn device(&self) -> Option<&Device> {
        self.on_device.as_ref().map(OnDevice::device)
    }

    /// Those of some weights, which a pass multiplies with now, that are on the device.
    pub fn find_on_device(
        &self,
        ids: impl ExactSizeIterator<Item = WeightId>,
    ) -> Vec<Option<Arc<DeviceMatrix>>> {
        match &self.on_device {
            Some(on_device) => on_device.find(ids.map(WeightId::index)),
            None => vec![None; ids.len()],
        }
    }

    /// Some values of the model that do not change for as long as it lives, on the device: they are copied
    /// once. `None` where there is no device.
    ///
    /// # Errors
    /// A device that is lost or has no memory for them.
    pub fn constant_on_device(&self, values: &[f32]) -> Result<Option<DeviceSlice>, DeviceError> {
        self.on_device.as_ref().map(|on_device| on_device.constant(values)).transpose()
    }

    /// So many blocks of a pass have run on the device, from norm to sum.
    pub fn blocks_ran_on_device(&self, blocks: usize) {
        if let Some(on_device) = &self.on_device {
            on_device.blocks_ran(blocks);
        }
    }

    /// The device has failed: from now on nothing is on it.
    pub fn device_failed(&self, error: &DeviceError) {
        if let Some(on_device) = &self.on_device {
            on_device.fail(error);
        }
    }

    /// What came of the device; `None` where there is none.
    pub fn device_stats(&self) -> Option<DeviceStats> {
        self.on_device.as_ref().map(OnDevice::stats)
    }

    /// Waits until the device has all that it is to have at first, or has failed.
    pub fn wait_for_device(&self) {
        if let Some(on_device) = &self.on_device {
            on_device.wait();
        }
    }

    /// Those of some weights that the device has no copy of.
    fn not_on_device(&self, ids: impl IntoIterator<Item = WeightId>) -> Vec<WeightId> {
        let mut ids: Vec<WeightId> = ids.into_iter().collect();
        if let Some(on_device) = &self.on_device {
            ids.retain(|id| !self.is_placed_on_device(id.index()));
            on_device.leave_out(&mut ids);
        }
        ids
    }

    /// Says that these weights will be read soon, in this order. Never blocks.
    pub fn will_need(&self, ids: impl IntoIterator<Item = WeightId>) {
        let ids = self.not_on_device(ids);
        if let Some(streamed) = &self.streamed {
            let ids: Vec<usize> = ids.into_iter().map(WeightId::index).collect();
            return streamed.will_need(&ids);
        }
        ids.into_iter().for_each(|id| self.announce_mapped(id));
    }

    /// Says that these weights may be read soon. Reads nothing where it is not certain to be free. Never
    /// blocks.
    pub fn may_need(&self, ids: impl IntoIterator<Item = WeightId>, guesses: Guesses) {
        if let Some(streamed) = &self.streamed {
            let ids = self.not_on_device(ids);
            streamed.may_need(&ids.into_iter().map(WeightId::index).collect::<Vec<_>>(), guesses);
        }
    }

    /// Whether guesses of experts are to be made in this pass, so that they may be read ahead or watched.
    pub fn makes_guesses(&self, guesses: Guesses) -> bool {
        self.streamed.as_ref().is_some_and(|streamed| streamed.makes_guesses(guesses))
    }

    /// Whether a weight can be had without waiting.
    pub fn is_resident(&self, id: WeightId) -> bool {
        self.streamed(id).is_none_or(|streamed| streamed.is_resident(id.index()))
    }

    /// Those of some weights that are in memory, with their index in `ids`; where none is, waits for the
    /// first. Use and drop them before asking for the rest.
    ///
    /// # Errors
    /// Where one of them cannot be read: one that was read ahead in vain is tried again before.
    pub fn acquire_some(&self, ids: &[WeightId]) -> Result<Vec<(usize, Guard<'_>)>, StoreError> {
        let mapped = |id: WeightId| Guard(Bytes::Mapped(self.mapped(id)));
        let is_mapped = |&(_, &id): &(usize, &WeightId)| self.streamed(id).is_none();
        let guards: Vec<_> =
            ids.iter().enumerate().filter(is_mapped).map(|(i, &id)| (i, mapped(id))).collect();
        let Some(streamed) = self.streamed.as_ref().filter(|_| guards.is_empty() && !ids.is_empty()) else {
            return Ok(guards);
        };
        let wanted: Vec<usize> = ids.iter().map(|id| id.index()).collect();
        let held = streamed.hold_some(&wanted).map_err(|failure| self.failure(&failure, ids[0]))?;
        Ok(held.into_iter().map(|(i, hold)| (i, Guard(Bytes::Held(hold)))).collect())
    }

    /// Why a weight cannot be had.
    fn failure(&self, failure: &Failure, wanted: WeightId) -> StoreError {
        match failure {
            Failure::Read(fault) => {
                let error = std::io::Error::new(fault.error.kind(), fault.error.to_string());
                self.read_error(WeightId::of(fault.weight), fault.offset, Arc::new(error))
            }
            Failure::Panicked => {
                let extent = &self.extents[wanted.index()];
                StoreError::ReaderPanicked {
                    path: self.files[extent.part].path().to_owned(),
                    tensor: extent.tensor.to_string(),
                    offset: extent.bytes.start as u64,
                }
            }
        }
    }

    /// The bytes of a weight, for as long as the guard lives.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn acquire(&self, id: WeightId) -> Result<Guard<'_>, StoreError> {
        let mut guards = self.acquire_some(&[id])?;
        Ok(guards.remove(0).1)
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
        if matches!(extent.role, Role::Always) {
            scratch
                .resize(range.len())
                .map_err(|error| self.read_error(id, extent.bytes.start as u64, Arc::new(error)))?;
            // Its turn in the pass is another: what is streamed stays where it is.
            if streamed.copy(id.index(), range.clone(), scratch.as_mut()) {
                let read: &AlignedBuffer = scratch;
                return Ok(read.as_ref());
            }
        }
        let (start, end) = (extent.bytes.start + range.start, extent.bytes.start + range.end);
        let within = streamed
            .read(extent.part, (start as u64, end as u64), scratch)
            .map_err(|error| self.read_error(id, start as u64, Arc::new(error)))?;
        let read: &AlignedBuffer = scratch;
        Ok(&read.as_ref()[within])
    }
}

/// Holds a weight's bytes where they are.
#[derive(Debug)]
pub struct Guard<'a>(Bytes<'a>);

#[derive(Debug)]
enum Bytes<'a> {
    Mapped(&'a [u8]),
    Held(Hold<'a>),
}

impl Deref for Guard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(bytes) => bytes,
            Bytes::Held(hold) => hold,
        }
    }
}
