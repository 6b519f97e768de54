//! What blocks on a device are made of: rows in its memory, products, and nodes that observers see.

use std::sync::Arc;

use crate::device::{DeviceActivations, DeviceError, DeviceMatrix, DeviceOps, DeviceSlice};
use crate::quant::ActivationType;
use crate::store::Store;

use super::super::parts::{Norm, NormKind};
use super::super::run::Run;
use super::super::weights::Linear;
use super::super::{Label, NodeId, Work};
use super::{Chain, Stop, There};

/// A linear map whose matrix is on the device.
pub(super) struct Placed<'m> {
    pub linear: &'m Linear,
    pub matrix: Arc<DeviceMatrix>,
}

/// Linear maps whose matrices are all on the device.
pub(super) fn place<'m, const N: usize>(
    store: &Store,
    linears: [Option<&'m Linear>; N],
) -> Option<[Option<Placed<'m>>; N]> {
    let ids: Vec<_> = linears.iter().flatten().map(|linear| linear.id()).collect();
    let found: Option<Vec<_>> = store.find_on_device(ids.into_iter()).into_iter().collect();
    let mut found = found?.into_iter();
    Some(
        linears.map(|linear| {
            linear.map(|linear| Placed { linear, matrix: found.next().expect("one for each") })
        }),
    )
}

/// The operation that rounds to a type.
pub(super) fn rounding(ty: ActivationType) -> &'static str {
    match ty {
        ActivationType::F32 => "round_f32",
        ActivationType::F16 => "round_f16",
        ActivationType::BF16 => "round_bf16",
        ActivationType::Q8_0 => "round_q8_0",
        ActivationType::Q8_1 => "round_q8_1",
        ActivationType::Q8_K => "round_q8_k",
    }
}

/// A block that is being enqueued.
pub(super) struct Step<'r, 'a> {
    pub run: &'r mut Run<'a>,
    pub there: There<'a>,
    pub chain: Chain,
}

impl<'a> Step<'_, 'a> {
    pub fn ops(&self) -> &'a DeviceOps {
        self.there.ops
    }

    /// Rows of the pass, of so many values each, under this name.
    pub fn rows(&mut self, name: &'static str, row: usize) -> Result<DeviceSlice, DeviceError> {
        self.run.buffers.on_device.slice(self.there.ops, name, self.run.rows * row)
    }

    /// A norm, in place.
    pub fn norm(&mut self, norm: &Norm, x: &DeviceSlice) -> Result<(), DeviceError> {
        let constant =
            |values: &Option<Vec<f32>>| values.as_ref().map(|values| self.there.constant(values)).transpose();
        let (weight, bias) = (constant(&norm.weight)?, constant(&norm.bias)?);
        let ops = self.ops();
        match norm.kind {
            NormKind::Rms => {
                ops.rms_norm(x, norm.row, weight.as_ref(), norm.eps)?;
                bias.map_or(Ok(()), |bias| ops.add_bias(x, &bias))
            }
            NormKind::Layer => ops.layer_norm(x, norm.row, weight.as_ref(), bias.as_ref(), norm.eps),
        }
    }

    /// Rounds rows of `cols` to what products read, once for each type.
    pub fn round(
        &mut self,
        x: &DeviceSlice,
        cols: usize,
        types: impl IntoIterator<Item = ActivationType>,
    ) -> Result<Vec<DeviceActivations>, Stop> {
        self.round_in_room(x, cols, x.len() / cols, types)
    }

    /// The same in room for so many rows, of which `x` has some.
    pub fn round_in_room(
        &mut self,
        x: &DeviceSlice,
        cols: usize,
        rows: usize,
        types: impl IntoIterator<Item = ActivationType>,
    ) -> Result<Vec<DeviceActivations>, Stop> {
        let (ops, flag) = (self.ops(), self.chain.flag());
        let mut rounded = Vec::<DeviceActivations>::new();
        for ty in types {
            if rounded.iter().all(|rounded| rounded.ty() != ty) {
                let to = self.run.buffers.on_device.rounded(ops, ty, rows, cols)?;
                ops.round(x, &to, &flag)?;
                rounded.push(to);
            }
        }
        if self.run.watch.active() {
            // Nodes behind one that is not finite are not shown.
            let mut found = [0u32];
            ops.read(&flag, &mut found)?;
            if found != [u32::MAX] {
                return Err(Stop::Wrong);
            }
        }
        Ok(rounded)
    }

    /// A product of what was rounded, with its factor.
    pub fn project(
        &self,
        rounded: &[DeviceActivations],
        placed: &Placed<'_>,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let of_type = |x: &&DeviceActivations| x.ty() == placed.linear.activation();
        let x = rounded.iter().find(of_type).expect("rounded to every type that the weights want");
        self.there.device.multiply(&placed.matrix, x, 0..self.run.rows, out)?;
        placed.linear.scale.map_or(Ok(()), |scale| self.ops().scale(out, scale))
    }

    /// The output projection of a mixing step: of `x`, whose node is given too.
    pub fn project_output(
        &mut self,
        (x, node): (&DeviceSlice, NodeId<'static>),
        placed: &Placed<'_>,
        name: &'static str,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let (linear, inputs) = (placed.linear, [node]);
        let rounded = self.round(x, linear.matrix.cols, [linear.activation()])?;
        self.project(&rounded, placed, out)?;
        let label = Label::product(name, Work::AttentionOutput, linear.matrix.described(), &inputs);
        self.run.cur = self.show(label, [self.run.rows, self.run.embd, 1], out)?;
        Ok(())
    }

    /// Adds the bias of a linear map, where it has one; says whether it has.
    pub fn add_bias(&self, linear: &Linear, out: &DeviceSlice) -> Result<bool, DeviceError> {
        let Some(bias) = &linear.bias else { return Ok(false) };
        self.ops().add_bias(out, &self.there.constant(bias)?)?;
        Ok(true)
    }

    /// Shows a node.
    pub fn show(
        &mut self,
        label: Label<'_>,
        shape: [usize; 3],
        x: &DeviceSlice,
    ) -> Result<NodeId<'static>, DeviceError> {
        self.show_side_by_side(label, shape, std::slice::from_ref(x))
    }

    /// So many values under this name.
    pub fn slice(&mut self, name: &'static str, len: usize) -> Result<DeviceSlice, DeviceError> {
        self.run.buffers.on_device.slice(self.there.ops, name, len)
    }

    /// Shows rows that lie in memory of their own side by side.
    pub fn show_side_by_side(
        &mut self,
        label: Label<'_>,
        shape: [usize; 3],
        parts: &[DeviceSlice],
    ) -> Result<NodeId<'static>, DeviceError> {
        let (ops, rows) = (self.ops(), self.run.rows);
        let read = || {
            let all: Result<Vec<Vec<f32>>, DeviceError> =
                parts.iter().map(|part| values(ops, part)).collect();
            let all = all?;
            let row = |i| all.iter().flat_map(move |part| part.chunks(part.len() / rows).nth(i));
            Ok((0..rows).flat_map(row).flatten().copied().collect())
        };
        let write = |values: &[f32]| {
            let (row, mut at) = (values.len() / rows, 0);
            for part in parts {
                let n = part.len() / rows;
                let own: Vec<f32> = values.chunks(row).flat_map(|row| &row[at..at + n]).copied().collect();
                ops.write(part, &own)?;
                at += n;
            }
            Ok(())
        };
        self.run.watch.show_elsewhere(label, shape, read, write)
    }
}

/// Values of the device.
pub(super) fn values(ops: &DeviceOps, x: &DeviceSlice) -> Result<Vec<f32>, DeviceError> {
    let mut values = vec![0.0; x.len()];
    ops.read(x, &mut values)?;
    Ok(values)
}
