//! LFM2's short convolution on a device.

use crate::device::DeviceSlice;

use super::super::parts::ShortConv;
use super::super::{Label, NodeKind, NodeWeight, Work};
use super::recurring::{Recurring, conv_there};
use super::states::States;
use super::step::{Placed, place, rounding};
use super::{Step, Stop, There};

/// A short convolution whose weights are there.
pub(super) struct Convolving<'m> {
    part: &'m ShortConv,
    /// b, c and x.
    projections: [Placed<'m>; 3],
    output: Placed<'m>,
}

impl<'m> Convolving<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, part: &'m ShortConv) -> Option<Convolving<'m>> {
        let [b, c, x] = &part.projections;
        let linears = [b, c, x, &part.output];
        let rounded = linears.iter().map(|linear| rounding(linear.activation()));
        if !there.has_all(["mul", "causal_conv"].into_iter().chain(rounded)) {
            return None;
        }
        let [b, c, x, output] = place(there.store, linears.map(Some))?;
        Some(Convolving { part, projections: [b?, c?, x?], output: output? })
    }
}

impl Recurring for Convolving<'_> {
    fn slots(&self) -> Vec<usize> {
        vec![self.part.slot]
    }

    fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        states: &States,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let (n, shape) = (step.run.embd, [step.run.rows, step.run.embd, 1]);
        let [to_bx, name, output_name] = self.part.spec.names;
        let [b, c, x] = [step.rows("conv_b", n)?, step.rows("conv_c", n)?, step.rows("conv_x", n)?];
        let types = self.projections.iter().map(|placed| placed.linear.activation());
        let inputs = step.round(cur, n, types)?;
        let parts = [b.clone(), c.clone(), x.clone()];
        for (placed, out) in self.projections.iter().zip(&parts) {
            step.project(&inputs, placed, out)?;
            step.add_bias(placed.linear, out)?;
        }
        let weights = self.projections.iter().map(|placed| placed.linear.matrix.described());
        let (weight, inputs) = (weights.reduce(NodeWeight::and), [step.run.cur]);
        let label = Label { weight, ..Label::new(to_bx, NodeKind::Product, Work::Projections, &inputs) };
        let projected = step.show_side_by_side(label, [step.run.rows, 3 * n, 1], &parts)?;
        step.ops().mul(&b, &x)?;
        let label = Label::elementwise("conv_bx", Work::Recurrence, std::slice::from_ref(&projected));
        let bx = step.show(label, shape, &b)?;
        let (weights, convolved) = (conv_there(step, &self.part.conv)?, x);
        step.recur(states, self.part.slot, |ops, rows, window| {
            let part = |x: &DeviceSlice| x.part(rows.start * n, rows.len() * n);
            ops.causal_conv(&weights, false, &part(&b), window, &part(&convolved))
        })?;
        let inputs = [bx];
        let label = Label::new(name, NodeKind::Convolution, Work::Recurrence, &inputs);
        let node = step.show(label, shape, &convolved)?;
        step.ops().mul(&convolved, &c)?;
        let inputs = [projected, node];
        let label = Label::elementwise("conv_gated", Work::Recurrence, &inputs);
        step.run.attended = step.show(label, shape, &convolved)?;
        let gated = (&convolved, step.run.attended);
        step.project_output(gated, &self.output, output_name, out)
    }
}
