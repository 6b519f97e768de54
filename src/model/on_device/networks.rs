//! The feed-forward networks of a layer on a device.

use crate::device::DeviceSlice;

use super::super::layer::{FeedForward, Layer};
use super::super::parts::{DenseAndExperts, Experts};
use super::super::{Label, Work};
use super::block::{normed, of_norm};
use super::dense::Network;
use super::experts::Routed;
use super::{Step, Stop, There};

/// Networks that the device does.
pub(super) enum Networks<'m> {
    Dense(Network<'m>),
    Experts(Routed<'m>),
    Both(Both<'m>),
}

/// A dense network and experts beside it, each with norms of its own.
pub(super) struct Both<'m> {
    part: &'m DenseAndExperts,
    dense: Network<'m>,
    experts: Routed<'m>,
}

impl<'m> Networks<'m> {
    /// Where the device can do them and has the weights.
    pub fn find(there: There<'_>, layer: &'m Layer) -> Option<Networks<'m>> {
        Some(match layer.ffn.as_ref()? {
            FeedForward::Dense(dense) => Networks::Dense(Network::find(there, dense)?),
            FeedForward::Experts(experts) => Networks::Experts(Routed::find(there, experts)?),
            FeedForward::Both(both) => Networks::Both(Both::find(there, both)?),
        })
    }

    /// The networks of `cur`, in place. `next` are the experts of the next layer, where it is to be guessed
    /// which are wanted: behind a dense network alone the CPU does so.
    pub fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        next: Option<&Experts>,
    ) -> Result<(), Stop> {
        match self {
            Networks::Dense(dense) => dense.enqueue(step, cur),
            Networks::Experts(experts) => experts.enqueue(step, cur, next),
            Networks::Both(both) => both.enqueue(step, cur, next),
        }
    }
}

impl<'m> Both<'m> {
    fn find(there: There<'_>, part: &'m DenseAndExperts) -> Option<Both<'m>> {
        if !there.has_all(part.norms().map(of_norm)) {
            return None;
        }
        let (dense, experts) = (Network::find(there, &part.dense)?, Routed::find(there, &part.experts)?);
        Some(Both { part, dense, experts })
    }

    /// As [`DenseAndExperts::forward`].
    fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        next: Option<&Experts>,
    ) -> Result<(), Stop> {
        let [dense_post_norm, experts_norm, experts_post_norm] = self.part.norms();
        self.dense.enqueue(step, cur)?;
        normed(step, dense_post_norm, cur)?;
        let (beside, x) = (step.rows("beside", step.run.embd)?, step.chain.x());
        step.ops().copy(&beside, cur)?;
        step.ops().copy(cur, &x)?;
        let dense = std::mem::replace(&mut step.run.cur, step.run.x);
        normed(step, experts_norm, cur)?;
        self.experts.enqueue(step, cur, next)?;
        normed(step, experts_post_norm, cur)?;
        step.ops().add(cur, &beside)?;
        let (inputs, shape) = ([dense, step.run.cur], [step.run.rows, step.run.embd, 1]);
        let label = Label::elementwise("ffn_moe_combined", Work::Sums, &inputs);
        step.run.cur = step.show(label, shape, cur)?;
        Ok(())
    }
}
