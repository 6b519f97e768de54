//! The thread that copies weights to the device.

use std::sync::{Arc, PoisonError};

use super::super::streamed::Resident;
use super::Shared;
use crate::device::{DeviceError, DeviceMatrix, Queue};

/// Bytes that are copied at once: so long at most does the end of the store wait.
const STEP: usize = 8 << 20;

/// What is to be copied next.
enum Work {
    Always(usize, Arc<DeviceMatrix>),
    /// An expert's number and its weights.
    Expert(usize, Vec<usize>),
}

/// Copies until the store ends or the device fails.
pub(super) fn run(shared: &Shared, resident: Option<&Resident>) {
    let mut bytes = Vec::new();
    while let Some(work) = next(shared) {
        let copied = match &work {
            Work::Always(id, matrix) => copy(shared, *id, matrix, None, &mut bytes)
                .map(|is_there| is_there.then(|| vec![Arc::clone(matrix)])),
            Work::Expert(_, weights) => expert(shared, weights, resident, &mut bytes),
        };
        let mut state = shared.lock();
        state.copies = false;
        match (work, copied) {
            (Work::Always(id, matrix), Ok(done)) => state.ready[id] = done.map(|_| matrix),
            (Work::Expert(unit, weights), Ok(done)) => {
                state.experts.moved(unit, done.is_some());
                for (id, matrix) in weights.into_iter().zip(done.into_iter().flatten()) {
                    state.ready[id] = Some(matrix);
                }
            }
            (Work::Expert(unit, _), Err(DeviceError::OutOfMemory { .. })) => {
                state.experts.moved(unit, false);
                state.experts.no_more();
            }
            (_, Err(error)) => {
                drop(state);
                return shared.fail(&error);
            }
        }
        shared.changed.notify_all();
    }
}

/// Waits for work; `None` where there will be none.
fn next(shared: &Shared) -> Option<Work> {
    let mut state = shared.lock();
    loop {
        if state.ends || state.has_failed {
            return None;
        }
        if let Some((id, matrix)) = state.allocated.pop_front() {
            state.copies = true;
            return Some(Work::Always(id, matrix));
        }
        if let Some((unit, weights, victims)) = state.experts.next() {
            let (weights, victims) = (weights.to_vec(), victims.to_vec());
            // What is in use lives until it is not.
            victims.into_iter().for_each(|id| state.ready[id] = None);
            state.copies = true;
            return Some(Work::Expert(unit, weights));
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// An expert's matrices; `None` where its bytes cannot be had: the pass that reads them will say why.
fn expert(
    shared: &Shared,
    weights: &[usize],
    resident: Option<&Resident>,
    bytes: &mut Vec<u8>,
) -> Result<Option<Vec<Arc<DeviceMatrix>>>, DeviceError> {
    let mut matrices = Vec::with_capacity(weights.len());
    for &id in weights {
        let matrix = Arc::new(shared.sources[id].matrix(&shared.device)?);
        if !copy(shared, id, &matrix, resident, bytes)? {
            return Ok(None);
        }
        matrices.push(matrix);
    }
    Ok(Some(matrices))
}

/// Copies a weight; says whether its bytes could be had, and nobody has ended it.
fn copy(
    shared: &Shared,
    id: usize,
    matrix: &DeviceMatrix,
    resident: Option<&Resident>,
    bytes: &mut Vec<u8>,
) -> Result<bool, DeviceError> {
    let source = &shared.sources[id];
    let len = source.range.len();
    for at in (0..len).step_by(STEP) {
        if shared.lock().ends {
            return Ok(false);
        }
        let part = at..len.min(at + STEP);
        bytes.resize(part.len(), 0);
        let is_resident = resident.is_some_and(|resident| resident.copy(id, part.clone(), bytes));
        if !is_resident {
            match source.file.read(source.range.start + part.start, part.len()) {
                Ok(read) => *bytes = read,
                Err(_) => return Ok(false),
            }
        }
        shared.device.write(Queue::Copies, matrix.memory(), at, bytes)?;
    }
    Ok(true)
}
