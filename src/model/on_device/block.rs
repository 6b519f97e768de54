//! A block: what stands before and behind a part.

use crate::device::{DeviceKvPages, DeviceSlice};

use super::super::layer::Layer;
use super::super::observer::NodeName;
use super::super::parts::{Norm, NormKind};
use super::super::{Label, Work};
use super::attention::Attending;
use super::dense::Network;
use super::{Step, Stop, There};

/// What every block needs.
const OPS: [&str; 4] = ["copy", "add", "add_bias", "scale"];

/// Whether the device can do what stands around a part.
pub(super) fn takes(there: There<'_>, norms: [&Option<Norm>; 2]) -> bool {
    there.has_all(OPS) && there.has_all(norms.into_iter().flatten().map(of_norm))
}

/// The operation of a norm.
pub(super) fn of_norm(norm: &Norm) -> &'static str {
    match norm.kind {
        NormKind::Rms => "rms_norm",
        NormKind::Layer => "layer_norm",
    }
}

/// The block of a mixing step, which `part` enqueues.
pub(super) fn mixer<'r, 'a>(
    step: &mut Step<'r, 'a>,
    layer: &Layer,
    part: impl FnOnce(&mut Step<'r, 'a>, &DeviceSlice) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let cur = enter(step, layer, &layer.attn_norm)?;
    part(step, &cur)?;
    // Of a step alone the sum is the layer's output.
    let sum = if layer.ffn.is_some() { layer.middle.into() } else { layer.out };
    finish(step, layer, &cur, &layer.attn_post_norm, ["residual_scaled_attn".into(), sum])
}

/// Attention and a dense network of the same input.
pub(super) fn side_by_side(
    step: &mut Step<'_, '_>,
    layer: &Layer,
    (attention, pages): (&Attending<'_>, &[Option<DeviceKvPages>]),
    network: &Network<'_>,
) -> Result<(), Stop> {
    let cur = enter(step, layer, &layer.attn_norm)?;
    let (beside, x, input) = (step.rows("beside", step.run.embd)?, step.chain.x(), step.run.cur);
    attention.enqueue(step, &cur, pages, &beside)?;
    let attended = std::mem::replace(&mut step.run.cur, input);
    network.enqueue(step, &cur)?;
    step.ops().add(&x, &cur)?;
    step.ops().add(&x, &beside)?;
    let (inputs, shape) = ([step.run.x, step.run.cur, attended], [step.run.rows, step.run.embd, 1]);
    step.run.x = step.show(Label::elementwise(layer.out, Work::Sums, &inputs), shape, &x)?;
    Ok(())
}

/// The block of a dense network or of experts, which `part` enqueues.
pub(super) fn network<'r, 'a>(
    step: &mut Step<'r, 'a>,
    layer: &Layer,
    part: impl FnOnce(&mut Step<'r, 'a>, &DeviceSlice) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let cur = enter(step, layer, &layer.ffn_norm)?;
    part(step, &cur)?;
    // As the layer's tail, where that is a factor alone.
    let scale = layer.tail.as_ref().and_then(|tail| tail.scale);
    let sum = if scale.is_some() { "unscaled_out".into() } else { layer.out };
    finish(step, layer, &cur, &layer.ffn_post_norm, ["residual_scaled_ffn".into(), sum])?;
    scale.map_or(Ok(()), |scale| scale_stream(step, scale, layer.out))
}

/// The input of a block, which becomes the residual stream where the output is added to that.
fn enter(step: &mut Step<'_, '_>, layer: &Layer, norm: &Option<Norm>) -> Result<DeviceSlice, Stop> {
    let (cur, x) = (step.rows("cur", step.run.embd)?, step.chain.x());
    step.ops().copy(&cur, &x)?;
    step.run.cur = step.run.x;
    if let Some(norm) = norm {
        normed(step, norm, &cur)?;
    }
    if layer.normed_residual.is_some() {
        step.ops().copy(&x, &cur)?;
        step.run.x = step.run.cur;
    }
    Ok(cur)
}

/// A norm of a block's input or output, in place.
pub(super) fn normed(step: &mut Step<'_, '_>, norm: &Norm, cur: &DeviceSlice) -> Result<(), Stop> {
    step.norm(norm, cur)?;
    let inputs = [step.run.cur];
    step.run.cur = step.show(norm.label(&inputs), [step.run.rows, step.run.embd, 1], cur)?;
    Ok(())
}

/// Adds the output of a part to the residual stream; the names are those of the stream times a factor, and of
/// the sum.
fn finish(
    step: &mut Step<'_, '_>,
    layer: &Layer,
    cur: &DeviceSlice,
    norm: &Option<Norm>,
    [scaled, sum]: [NodeName; 2],
) -> Result<(), Stop> {
    let (x, shape) = (step.chain.x(), [step.run.rows, step.run.embd, 1]);
    if let Some(scale) = layer.normed_residual {
        scale_stream(step, scale, scaled)?;
    }
    if let Some(norm) = norm {
        normed(step, norm, cur)?;
    }
    if let Some(scale) = layer.residual_scale {
        step.ops().scale(cur, scale)?;
    }
    step.ops().add(&x, cur)?;
    let inputs = [step.run.x, step.run.cur];
    step.run.x = step.show(Label::elementwise(sum, Work::Sums, &inputs), shape, &x)?;
    Ok(())
}

/// A factor on the residual stream behind the layer.
fn scale_stream(step: &mut Step<'_, '_>, scale: f32, name: NodeName) -> Result<(), Stop> {
    let (x, shape) = (step.chain.x(), [step.run.rows, step.run.embd, 1]);
    step.ops().scale(&x, scale)?;
    let inputs = [step.run.x];
    step.run.x = step.show(Label::elementwise(name, Work::Sums, &inputs), shape, &x)?;
    Ok(())
}
