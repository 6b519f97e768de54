//! Blocks under way on a device, one after another.

use zerocopy::{FromBytes, IntoBytes};

use crate::device::{DeviceRopeTable, DeviceSlice};

use super::super::observer::Mark;
use super::super::parts::{Block, check_kept};
use super::super::run::{Run, with_rows};
use super::super::state::KvType;
use super::super::{ForwardError, Logits, NodeId};
use super::states::stretches_of;
use super::{Stop, There, failed};

/// Blocks times rows that a chain has at most: a device that is slow is heard of now and then.
const MOST_ROWS: usize = 1 << 13;
/// Words before the residual rows: the first is the least index of a value that is not finite.
const HEAD: usize = 4;

/// Keys and values that a block has stored on the device, and the host has not.
#[derive(Debug)]
struct Kept {
    slot: usize,
    /// Where they begin in the results; behind the keys `[rows][k_row]` the values `[rows][v_row]`.
    at: usize,
    rows: [usize; 2],
}

/// What the state of a sequence's recurrence is at the ends of the pass's stretches.
#[derive(Debug)]
struct KeptStates {
    slot: usize,
    segment: usize,
    /// The place of the copy that has become the last of them.
    place: usize,
    /// Where they begin in the results, one behind the other.
    at: usize,
    floats: usize,
}

/// See the module.
#[derive(Debug)]
pub(in crate::model) struct Chain {
    rows: usize,
    embd: usize,
    /// [`HEAD`], residual rows, keys and values, states.
    results: DeviceSlice,
    /// Words of it that are in use.
    used: usize,
    kept: Vec<Kept>,
    kept_states: Vec<KeptStates>,
    /// Stretches of the pass's rows: so many states of a slot are kept.
    stretches: usize,
    blocks: Vec<(usize, Block)>,
    /// Where the pass stood at its beginning.
    mark: Mark,
    nodes: [NodeId<'static>; 2],
    /// Tables of rotations that are there.
    pub(super) ropes: Vec<Option<DeviceRopeTable>>,
    /// Why it does not go on.
    stopped: Option<Stop>,
}

impl Chain {
    /// Brings the residual rows to the device.
    pub(super) fn begin(run: &mut Run<'_>, there: There<'_>) -> Result<Chain, Stop> {
        let (rows, embd) = (run.rows, run.embd);
        let n = rows * embd;
        let stretches = stretches_of(&run.segments);
        let room = &mut run.buffers.on_device;
        let kept = room.kept(rows) + room.kept_states(stretches);
        let results = room.slice(there.ops, "results", HEAD + n + kept)?;
        let mut words = vec![0; HEAD];
        words[0] = u32::MAX;
        words.extend(run.buffers.x[..n].iter().map(|x| x.to_bits()));
        there.ops.write(&results.part(0, HEAD + n), &words)?;
        Ok(Chain {
            rows,
            embd,
            results,
            used: HEAD + n,
            kept: Vec::new(),
            kept_states: Vec::new(),
            stretches,
            blocks: Vec::new(),
            mark: run.watch.mark(),
            nodes: [run.x, run.cur],
            ropes: Vec::new(),
            stopped: None,
        })
    }

    /// Whether it is to end before another block.
    pub fn is_full(&self, run: &Run<'_>) -> bool {
        let (left, room) = (self.results.len() - self.used, &run.buffers.on_device);
        let of_block = room.kept_of_block(self.rows) + room.kept_states_of_block(self.stretches);
        (self.blocks.len() + 1) * self.rows > MOST_ROWS && !self.blocks.is_empty()
            || left < of_block && !(self.kept.is_empty() && self.kept_states.is_empty())
    }

    pub(super) fn add(&mut self, block: (usize, Block)) {
        self.blocks.push(block);
    }

    pub(super) fn stop(&mut self, stop: Stop) {
        self.stopped = Some(stop);
    }

    /// The residual rows `[rows][embd]`.
    pub(super) fn x(&self) -> DeviceSlice {
        self.results.part(HEAD, self.rows * self.embd)
    }

    /// Where the least index of a value is that is not finite.
    pub(super) fn flag(&self) -> DeviceSlice {
        self.results.part(0, 1)
    }

    /// Room for keys and values of a slot, of so many values a row, which the host gets at the end.
    pub(super) fn keep(&mut self, slot: usize, rows: [usize; 2]) -> [DeviceSlice; 2] {
        let at = self.used;
        let [k, v] = rows.map(|row| self.rows * row);
        self.used += k + v;
        self.kept.push(Kept { slot, at, rows });
        [self.results.part(at, k), self.results.part(at + k, v)]
    }

    /// Room for what a slot's state in a segment is at the ends of so many stretches, which the host gets at
    /// the end; the last is what the place is left with.
    pub(super) fn keep_states(
        &mut self,
        (slot, segment, place): (usize, usize, usize),
        stretches: usize,
        floats: usize,
    ) -> DeviceSlice {
        let (at, n) = (self.used, stretches * floats);
        self.used += n;
        self.kept_states.push(KeptStates { slot, segment, place, at, floats });
        self.results.part(at, n)
    }

    /// See [`end`](super::end).
    pub(super) fn end(mut self, run: &mut Run<'_>) -> Result<Vec<(usize, Block)>, ForwardError> {
        let ended = match self.stopped.take() {
            Some(stop) => Err(stop),
            None => self.bring_back(run),
        };
        match ended {
            Ok(()) => {
                run.watch.unmark();
                run.buffers.on_device.pages.keep();
                run.store.blocks_ran_on_device(self.blocks.len());
                return Ok(Vec::new());
            }
            Err(Stop::Pass(error)) => return Err(error),
            Err(Stop::Device(error)) => failed(run, &error),
            Err(Stop::Wrong) => {}
        }
        run.buffers.on_device.pages.take_back();
        run.watch.go_back(self.mark);
        [run.x, run.cur] = self.nodes;
        Ok(self.blocks)
    }

    /// Waits for the results, and takes them over where all is right.
    fn bring_back(&self, run: &mut Run<'_>) -> Result<(), Stop> {
        let Some(there) = There::of(run.store) else { return Err(Stop::Wrong) };
        let mut words = std::mem::take(&mut run.buffers.on_device.results);
        words.resize(words.len().max(self.used), 0);
        there.ops.read(&self.results.part(0, self.used), &mut words[..self.used])?;
        self.take_over(&words[..self.used], run)?;
        run.buffers.on_device.results = words;
        Ok(())
    }

    fn take_over(&self, words: &[u32], run: &mut Run<'_>) -> Result<(), Stop> {
        let floats = <[f32]>::ref_from_bytes(words.as_bytes()).expect("words are as wide as floats");
        let x = &floats[HEAD..][..self.rows * self.embd];
        // What is not finite never leaves the residual stream.
        if words[0] != u32::MAX || !x.iter().all(|x| x.is_finite()) {
            return Err(Stop::Wrong);
        }
        for kept in &self.kept {
            self.check_kept(kept, floats, run)?;
        }
        let ops = run.kernels.ops();
        for kept in &self.kept {
            let [keys, values] = kept.of(floats, self.rows);
            for (rows, segment) in with_rows(&mut run.segments) {
                let [keys, values] = [(keys, kept.rows[0]), (values, kept.rows[1])]
                    .map(|(all, row)| &all[rows.start * row..rows.end * row]);
                let stored = segment.state.store(ops, kept.slot, segment.first_pos, keys, values);
                stored.map_err(|error| Stop::Pass(error.into()))?;
            }
        }
        for kept in &self.kept_states {
            kept.take_over(floats, run)?;
        }
        run.buffers.x[..x.len()].copy_from_slice(x);
        Ok(())
    }

    fn check_kept(&self, kept: &Kept, floats: &[f32], run: &Run<'_>) -> Result<(), Stop> {
        let [keys, values] = kept.of(floats, self.rows);
        fits(run, kept.slot, [keys, values]).then_some(()).ok_or(Stop::Wrong)
    }
}

impl Kept {
    fn of<'f>(&self, floats: &'f [f32], rows: usize) -> [&'f [f32]; 2] {
        let [k, v] = self.rows.map(|row| rows * row);
        [&floats[self.at..][..k], &floats[self.at + k..][..v]]
    }
}

impl KeptStates {
    /// The host's state becomes what the device's has become, by the same stretches.
    fn take_over(&self, floats: &[f32], run: &mut Run<'_>) -> Result<(), Stop> {
        let segment = &mut run.segments[self.segment];
        let (first_pos, rows) = (segment.first_pos, segment.tokens.len());
        let mut at = self.at;
        let take = |_, state: &mut [f32]| {
            state.copy_from_slice(&floats[at..][..self.floats]);
            at += self.floats;
        };
        let drafts = segment.logits == Logits::Drafts;
        let advanced = segment.state.recurrent(self.slot, first_pos, rows, drafts, take);
        advanced.map_err(|error| Stop::Pass(error.into()))?;
        if let Some((number, _)) = segment.state.recurrent_state(self.slot, first_pos + rows) {
            run.buffers.on_device.states.keep(self.slot, self.place, number);
        }
        Ok(())
    }
}

/// Whether keys and values of a slot can be kept.
pub(super) fn fits(run: &Run<'_>, slot: usize, rows: [&[f32]; 2]) -> bool {
    with_rows(&run.segments).all(|(of, segment)| {
        let KvType { keys, values } = segment.state.kept_as(slot);
        let fits = |(ty, x): (_, &[f32])| {
            let row = x.len() / run.rows;
            check_kept("", 0, ty, &x[of.start * row..of.end * row], row).is_ok()
        };
        [keys, values].into_iter().zip(rows).all(fits)
    })
}
