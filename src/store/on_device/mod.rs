//! Weights on a device: copies of what a plan wants there, made in the background.
//!
//! What every token reads is copied once; until it is there, and from when the device has failed on, the CPU
//! computes with the bytes of the mapped file. Experts come and go ([`experts`]); those that are not on the
//! device are computed by the CPU, wherever the rest of the plan has them.

mod experts;
mod upload;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use zerocopy::IntoBytes;

use super::plan::DevicePlan;
use super::registry::FileBytes;
use super::streamed::Resident;
use super::{Place, Plan, StoreError, WeightId};
use crate::device::{Device, DeviceError, DeviceMatrix, DeviceSlice, Queue};
use crate::gguf::TensorType;
use experts::Experts;

/// Is told, once, that the device has failed.
pub type OnFailure = Box<dyn Fn(&DeviceError) + Send + Sync>;

/// A weight as a device has it, and where its bytes come from.
#[derive(Debug)]
pub(super) struct Source {
    pub file: FileBytes,
    pub range: Range<usize>,
    pub ty: TensorType,
    pub rows: usize,
    pub cols: usize,
    /// Of an expert.
    pub layer: usize,
    pub share: f32,
}

impl Source {
    /// Room for it on a device.
    fn matrix(&self, device: &Device) -> Result<DeviceMatrix, DeviceError> {
        let memory = Arc::new(device.allocate(self.range.len())?);
        Ok(DeviceMatrix::new(memory, 0, self.ty, self.rows, self.cols))
    }
}

/// What is where.
#[derive(Debug)]
struct State {
    /// Matrices that are there, by weight.
    ready: Vec<Option<Arc<DeviceMatrix>>>,
    /// Always used ones that have their room and wait for their bytes.
    allocated: std::collections::VecDeque<(usize, Arc<DeviceMatrix>)>,
    experts: Experts,
    /// Something is being copied.
    copies: bool,
    has_failed: bool,
    /// What is being copied now is to be waited for by nobody.
    ends: bool,
}

impl State {
    /// Whether something is being copied, or is to be.
    fn is_busy(&self) -> bool {
        !self.has_failed && (self.copies || !self.allocated.is_empty() || !self.experts.is_idle())
    }
}

struct Shared {
    device: Arc<Device>,
    sources: Vec<Source>,
    state: Mutex<State>,
    /// There is something to copy, or there is nothing any more.
    changed: Condvar,
    on_failure: OnFailure,
    /// Copies of values of the model that are no weights, by where they lie here.
    constants: Mutex<HashMap<(usize, usize), DeviceSlice>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("device", &self.device).finish_non_exhaustive()
    }
}

/// What experts came to that may be on the device: how often those that a pass wanted were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeviceStats {
    /// Matrices that passes found there.
    pub products: u64,
    /// Blocks of layers that ran there from norm to sum.
    pub blocks: u64,
    pub hits: u64,
    pub misses: u64,
    /// Experts that were copied to the device.
    pub moved: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct OnDevice {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the device no more.
    fn fail(&self, error: &DeviceError) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.has_failed, true) {
            state.ready.fill(None);
            state.allocated.clear();
            drop(state);
            self.changed.notify_all();
            (self.on_failure)(error);
        }
    }
}

impl OnDevice {
    /// Takes room for what is on the device all the time, and begins to copy. `resident` has experts that are
    /// in memory already.
    ///
    /// # Errors
    /// Where there is less room than the plan says: then another plan is to be made. Threads that cannot be
    /// had.
    pub fn start(
        device: Arc<Device>,
        sources: Vec<Source>,
        plan: &Plan,
        on_device: &DevicePlan,
        resident: Option<Resident>,
        on_failure: OnFailure,
    ) -> Result<OnDevice, StoreError> {
        let mut allocated = std::collections::VecDeque::new();
        for (id, source) in sources.iter().enumerate().filter(|(id, _)| plan.places[*id] == Place::Device) {
            allocated.push_back((id, Arc::new(source.matrix(&device)?)));
        }
        let state = State {
            ready: vec![None; sources.len()],
            allocated,
            experts: Experts::new(&sources, on_device),
            copies: false,
            has_failed: false,
            ends: false,
        };
        let changed = Condvar::new();
        let state = Mutex::new(state);
        let constants = Mutex::default();
        let shared = Arc::new(Shared { device, sources, state, changed, on_failure, constants });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("device".to_owned());
        let thread = thread.spawn(move || upload::run(&of_thread, resident.as_ref()));
        let thread = thread.map_err(|error| StoreError::Threads(Arc::new(error)))?;
        Ok(OnDevice { shared, thread: Some(thread) })
    }

    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// A pass over the whole model begins: experts that the one before wanted may move to the device.
    pub fn begin_pass(&self) {
        let mut state = self.shared.lock();
        if !state.has_failed && state.experts.begin_pass() {
            self.shared.changed.notify_all();
        }
    }

    /// Those of some weights, which a pass wants now, that are on the device.
    pub fn find(&self, ids: impl Iterator<Item = usize>) -> Vec<Option<Arc<DeviceMatrix>>> {
        let mut state = self.shared.lock();
        let State { ready, experts, .. } = &mut *state;
        ids.map(|id| {
            experts.wanted(id, ready[id].is_some());
            experts.stats.products += u64::from(ready[id].is_some());
            ready[id].clone()
        })
        .collect()
    }

    /// Values that are nobody else's for as long as this lives; copied once.
    pub fn constant(&self, values: &[f32]) -> Result<DeviceSlice, DeviceError> {
        let Shared { device, constants, .. } = &*self.shared;
        let mut constants = constants.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (values.as_ptr().addr(), values.len());
        if let Some(there) = constants.get(&place) {
            return Ok(there.clone());
        }
        let memory = Arc::new(device.allocate(size_of_val(values))?);
        device.write(Queue::Compute, &memory, 0, values.as_bytes())?;
        let there = DeviceSlice::new(memory, 0, values.len());
        constants.insert(place, there.clone());
        Ok(there)
    }

    pub fn blocks_ran(&self, blocks: usize) {
        self.shared.lock().experts.stats.blocks += blocks as u64;
    }

    /// Leaves out those of some weights that are on the device.
    pub fn leave_out(&self, ids: &mut Vec<WeightId>) {
        let state = self.shared.lock();
        ids.retain(|id| state.ready[id.index()].is_none());
    }

    /// The device has failed: it is used no more.
    pub fn fail(&self, error: &DeviceError) {
        self.shared.fail(error);
    }

    pub fn stats(&self) -> DeviceStats {
        self.shared.lock().experts.stats
    }

    /// Waits until all that is to be on the device is there.
    pub fn wait(&self) {
        drop(self.shared.changed.wait_while(self.shared.lock(), |state| state.is_busy()));
    }
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
