//! Experts that are not on the device: the CPU computes them while that computes the others, as their weights
//! come from memory or disk. It does the steps of [`Experts::forward`] over the slots of its own, from the
//! rows that the device has normed.

use crate::device::DeviceSlice;
use crate::kernels::Kernels;
use crate::store::Store;

use super::super::Buffers;
use super::super::parts::{Experts, gather, products};
use super::super::products::{Product, multiply_here};
use super::super::run::Run;
use super::super::state::ExpertBuffers;
use super::super::weights::Matrix;
use super::choice::Choice;
use super::{Step, Stop};

/// The CPU's share of a layer's experts, which the lists of [`ExpertBuffers`] have.
pub(super) struct Rest<'m> {
    experts: &'m Experts,
    slots: usize,
}

impl<'m> Rest<'m> {
    /// Brings the layer's input to the host, where it is wanted. Nothing but the choice is under way then.
    pub fn begin(
        step: &mut Step<'_, '_>,
        experts: &'m Experts,
        choice: &Choice,
        (cur, next): (&DeviceSlice, Option<&Experts>),
    ) -> Result<Rest<'m>, Stop> {
        let rest = Rest { experts, slots: choice.slots.len() - choice.slots_there };
        experts.announce(step.run);
        if rest.slots > 0 || next.is_some() {
            step.ops().read(cur, &mut step.run.buffers.cur[..cur.len()])?;
        }
        if let Some(next) = next {
            next.guess_unrounded(step.run).map_err(Stop::Pass)?;
        }
        if experts.weighs_input {
            rest.weigh(step.run);
        }
        Ok(rest)
    }

    /// The inputs of the slots, times their weights.
    fn weigh(&self, run: &mut Run<'_>) {
        let (used, width) = (self.experts.sizes().1, self.experts.width);
        let Buffers { cur, experts, .. } = &mut *run.buffers;
        let ExpertBuffers { weighted, weights, pairs, .. } = experts;
        for (row, &pair) in weighted.chunks_exact_mut(width).zip(pairs.iter().flatten()) {
            row.copy_from_slice(&cur[pair / used * width..][..width]);
            run.kernels.ops().scale(row, weights[pair]);
        }
    }

    /// Gate and up of the slots' inputs, which are rounded here.
    pub fn hidden(&self, step: &mut Step<'_, '_>) -> Result<(), Stop> {
        if self.slots == 0 {
            return Ok(());
        }
        let (experts, run) = (self.experts, &mut *step.run);
        let (ops, width, types) = (run.kernels.ops(), experts.width, experts.input_types());
        let Buffers { cur, inputs, hidden, experts: buffers, .. } = &mut *run.buffers;
        let ExpertBuffers { weighted, gathered, tokens, by_slot, gate, up, .. } = buffers;
        let rounded = match experts.weighs_input {
            true => hidden
                .prepare(ops, &weighted[..self.slots * width], width, types)
                .map(|()| gather(gathered, hidden, by_slot)),
            false => inputs
                .prepare(ops, &cur[..run.rows * width], width, types)
                .map(|()| gather(gathered, inputs, tokens)),
        };
        rounded.map_err(|_| Stop::Wrong)?;
        let n = self.slots * experts.ff;
        let mut outputs = vec![(&experts.up.matrices, &mut up[..n])];
        if let Some(part) = &experts.gate {
            outputs.insert(0, (&part.matrices, &mut gate[..n]));
        }
        multiply(run.kernels, run.store, products(tokens, gathered, outputs))
    }

    /// The activation of both, in the gates' place.
    pub fn activate(&self, step: &mut Step<'_, '_>) {
        let (ops, n) = (step.run.kernels.ops(), self.slots * self.experts.ff);
        let ExpertBuffers { gate, up, .. } = &mut step.run.buffers.experts;
        self.experts.activation.apply(ops, &mut gate[..n], &up[..n], self.experts.ff);
    }

    /// Down.
    pub fn output(&self, step: &mut Step<'_, '_>) -> Result<(), Stop> {
        if self.slots == 0 {
            return Ok(());
        }
        let (experts, run) = (self.experts, &mut *step.run);
        let Buffers { hidden, experts: buffers, .. } = &mut *run.buffers;
        let ExpertBuffers { gate, down, tokens, gathered, by_slot, .. } = buffers;
        let (types, ff) = (experts.down.matrices.iter().map(Matrix::activation), experts.ff);
        hidden.prepare(run.kernels.ops(), &gate[..self.slots * ff], ff, types).map_err(|_| Stop::Wrong)?;
        gather(gathered, hidden, by_slot);
        let outputs = vec![(&experts.down.matrices, &mut down[..self.slots * experts.width])];
        multiply(run.kernels, run.store, products(tokens, gathered, outputs))
    }
}

fn multiply(kernels: &'static Kernels, store: &Store, products: Vec<Product<'_>>) -> Result<(), Stop> {
    multiply_here(kernels, store, products).map_err(|error| Stop::Pass(error.into()))
}
