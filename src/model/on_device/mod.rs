//! Blocks of layers that run on a device as a whole: a norm, a part, and what adds its output to the residual
//! stream, without a way to the host and back between their operations.
//!
//! Consecutive blocks make a [`Chain`]: the residual rows go up at its beginning and come down at its end,
//! with the keys and values that its blocks have stored and with what the states of recurrences have become.
//! Until then the host's stay as they were: where the device fails, or a value is not finite, the CPU
//! computes the chain's blocks from them, and says what there is to say. The host's pages of keys and values
//! and its states are the truth; the device has copies of [those](pages) and of [these](states).
//!
//! What a device cannot do, or has no weights for, is refused before anything is enqueued: then the CPU does
//! that block. Of a layer's experts alone some may be elsewhere: the CPU does these within the
//! [block](experts).

mod attention;
mod block;
mod chain;
mod choice;
mod delta_net;
mod dense;
mod experts;
mod lightning;
mod mamba;
mod mamba2;
mod networks;
mod pages;
mod recurring;
mod rest;
mod room;
mod short_conv;
mod states;
mod step;
#[cfg(test)]
mod tests;

use crate::device::{Device, DeviceError, DeviceOps, DeviceSlice};
use crate::store::Store;

use super::layer::{FeedForward, Layer};
use super::parts::{Attention, AttentionAndMamba2, Block, Experts, Recurrence};
use super::products::not_computed;
use super::run::Run;
use super::{ForwardError, Label, Work};

use attention::Attending;
pub(super) use chain::Chain;
use dense::Network;
use mamba2::Scanning;
use networks::Networks;
pub(super) use room::Room;
use states::States;
use step::Step;

/// The device at hand.
#[derive(Clone, Copy)]
struct There<'a> {
    store: &'a Store,
    device: &'a Device,
    ops: &'a DeviceOps,
}

impl<'a> There<'a> {
    fn of(store: &'a Store) -> Option<There<'a>> {
        let device = store.device()?;
        Some(There { store, device, ops: device.ops()? })
    }

    fn has_all(self, ops: impl IntoIterator<Item = &'static str>) -> bool {
        ops.into_iter().all(|op| self.ops.has(op))
    }

    /// Values of the model, which do not change.
    fn constant(self, values: &[f32]) -> Result<DeviceSlice, DeviceError> {
        self.store.constant_on_device(values).map(|there| there.expect("there is a device"))
    }
}

/// Why a chain does not go on.
#[derive(Debug)]
enum Stop {
    Device(DeviceError),
    /// A value is not finite or cannot be kept: the CPU finds which.
    Wrong,
    /// The pass is over.
    Pass(ForwardError),
}

impl From<DeviceError> for Stop {
    fn from(error: DeviceError) -> Stop {
        Stop::Device(error)
    }
}

/// Enqueues a block of a layer; says whether the device does it. If not, the chain is to be [ended](end)
/// before the CPU does. `next` are the experts of the next layer, where the block is to guess which are
/// wanted.
///
/// # Errors
/// What ends the pass, wherever it is computed.
pub(super) fn enqueue(
    run: &mut Run<'_>,
    layer: &Layer,
    (il, block): (usize, Block),
    next: Option<&Experts>,
) -> Result<bool, ForwardError> {
    let Some(there) = There::of(run.store).filter(|_| layer.is_plain()) else { return Ok(false) };
    run.buffers.on_device.belong_to(there.device);
    if !run.buffers.on_device.takes(run.rows) {
        return Ok(false);
    }
    let norms = match block {
        Block::Mixer => [&layer.attn_norm, &layer.attn_post_norm],
        Block::Network => [&layer.ffn_norm, &layer.ffn_post_norm],
    };
    if !block::takes(there, norms) {
        return Ok(false);
    }
    match block {
        Block::Mixer => mixer(run, there, layer, il),
        Block::Network if layer.parallel || !tail_is_plain(layer) || !guesses(layer, next) => Ok(false),
        Block::Network => {
            let Some(found) = Networks::find(there, layer) else { return Ok(false) };
            let enqueue = |step: &mut Step<'_, '_>, cur: &DeviceSlice| found.enqueue(step, cur, next);
            in_chain(run, there, (il, block), |step| block::network(step, layer, enqueue))
        }
    }
}

/// Whether a block of networks can guess which experts of the next layer are wanted, if it is to. The CPU
/// does so behind dense networks, and where the router has an input of its own.
fn guesses(layer: &Layer, next: Option<&Experts>) -> bool {
    next.is_none_or(|next| layer.experts().is_some() && next.router.own_input().is_none())
}

/// Whether a factor is all that follows a layer's network.
fn tail_is_plain(layer: &Layer) -> bool {
    layer.tail.as_ref().is_none_or(|tail| tail.per_layer.is_none())
}

/// Enqueues the mixing step.
fn mixer<'a>(run: &mut Run<'a>, there: There<'a>, layer: &Layer, il: usize) -> Result<bool, ForwardError> {
    let Some(mixer) = &layer.mixer else { return Ok(false) };
    if let Some(part) = mixer.as_attention() {
        return attention(run, there, (layer, il), part);
    }
    match (mixer.as_recurrence(), mixer.as_both()) {
        _ if layer.parallel => Ok(false),
        (Some(part), _) => recurrence(run, there, (layer, il), part),
        (None, Some(part)) => both(run, there, (layer, il), part),
        (None, None) => Ok(false),
    }
}

/// Enqueues a recurrence.
fn recurrence<'a>(
    run: &mut Run<'a>,
    there: There<'a>,
    (layer, il): (&Layer, usize),
    part: Recurrence<'_>,
) -> Result<bool, ForwardError> {
    let Some(found) = recurring::find(there, part) else { return Ok(false) };
    let states = match States::bring(run, there, &found.slots()) {
        Ok(Some(states)) => states,
        Ok(None) => return Ok(false),
        Err(error) => return refused(run, error.into()),
    };
    let enqueue = |step: &mut Step<'_, '_>, cur: &DeviceSlice| found.enqueue(step, cur, &states, cur);
    in_chain(run, there, (il, Block::Mixer), |step| block::mixer(step, layer, enqueue))
}

/// Enqueues attention and Mamba 2 side by side, as [`AttentionAndMamba2`] goes through them.
fn both<'a>(
    run: &mut Run<'a>,
    there: There<'a>,
    (layer, il): (&Layer, usize),
    part: &AttentionAndMamba2,
) -> Result<bool, ForwardError> {
    let found = (Attending::find(there, &part.attention), Scanning::find(there, &part.mamba));
    let (Some(attention), Some(mamba)) = found else { return Ok(false) };
    let pages = match attention.pages(run, there) {
        Ok(Some(pages)) => pages,
        Ok(None) => return Ok(false),
        Err(stop) => return refused(run, stop),
    };
    let states = match States::bring(run, there, &[mamba.slot()]) {
        Ok(Some(states)) => states,
        Ok(None) => return Ok(false),
        Err(error) => return refused(run, error.into()),
    };
    in_chain(run, there, (il, Block::Mixer), |step| {
        block::mixer(step, layer, |step, cur| {
            let (input, beside) = (step.run.cur, step.rows("beside", step.run.embd)?);
            let gated = mamba.gated(step, cur, &states)?;
            step.run.cur = input;
            attention.enqueue(step, cur, &pages, &beside)?;
            let attended = step.run.cur;
            mamba.output(step, &gated, cur)?;
            step.ops().add(cur, &beside)?;
            let (inputs, shape) = ([attended, step.run.cur], [step.run.rows, step.run.embd, 1]);
            step.run.cur = step.show(Label::elementwise(part.sum, Work::Sums, &inputs), shape, cur)?;
            Ok(())
        })
    })
}

/// Enqueues attention, with the network where that stands beside it.
fn attention<'a>(
    run: &mut Run<'a>,
    there: There<'a>,
    (layer, il): (&Layer, usize),
    part: &Attention,
) -> Result<bool, ForwardError> {
    let Some(found) = Attending::find(there, part) else { return Ok(false) };
    let beside = match &layer.ffn {
        Some(FeedForward::Dense(dense)) if layer.parallel => Network::find(there, dense),
        _ => None,
    };
    if layer.parallel && (beside.is_none() || layer.tail.is_some()) {
        return Ok(false);
    }
    let pages = match found.pages(run, there) {
        Ok(Some(pages)) => pages,
        Ok(None) => return Ok(false),
        Err(stop) => return refused(run, stop),
    };
    in_chain(run, there, (il, Block::Mixer), |step| match &beside {
        Some(network) => block::side_by_side(step, layer, (&found, &pages), network),
        None => block::mixer(step, layer, |step, cur| found.enqueue(step, cur, &pages, cur)),
    })
}

/// Goes on with the chain, or begins one.
fn in_chain<'a>(
    run: &mut Run<'a>,
    there: There<'a>,
    block: (usize, Block),
    enqueue: impl FnOnce(&mut Step<'_, 'a>) -> Result<(), Stop>,
) -> Result<bool, ForwardError> {
    let chain = match run.chain.take() {
        Some(chain) => chain,
        None => match Chain::begin(run, there) {
            Ok(chain) => chain,
            Err(stop) => return refused(run, stop),
        },
    };
    let mut step = Step { run: &mut *run, there, chain };
    let enqueued = enqueue(&mut step);
    run.chain = Some(step.chain);
    match enqueued {
        Ok(()) if run.watch.observer.interrupted() => Err(ForwardError::Interrupted),
        Ok(()) => {
            run.chain.iter_mut().for_each(|chain| chain.add(block));
            Ok(true)
        }
        Err(stop) => refused(run, stop),
    }
}

/// The CPU has to do a block, and those of a chain that was under way.
fn refused(run: &mut Run<'_>, stop: Stop) -> Result<bool, ForwardError> {
    match stop {
        Stop::Pass(error) => return Err(error),
        stop => match &mut run.chain {
            Some(chain) => chain.stop(stop),
            None => {
                if let Stop::Device(error) = stop {
                    failed(run, &error);
                }
            }
        },
    }
    Ok(false)
}

/// The device has not done what it should.
fn failed(run: &mut Run<'_>, error: &DeviceError) {
    if matches!(error, DeviceError::OutOfMemory { .. }) {
        run.buffers.on_device.refuse(run.rows);
    }
    not_computed(run.store, error);
}

/// Ends the chain, if there is one: its results are in the buffers and in the sequences' pages. Otherwise the
/// blocks that the CPU is to compute from what was there before, in their order.
///
/// # Errors
/// Where there is no memory for another page.
pub(super) fn end(run: &mut Run<'_>) -> Result<Vec<(usize, Block)>, ForwardError> {
    match run.chain.take() {
        Some(chain) => chain.end(run),
        None => Ok(Vec::new()),
    }
}
