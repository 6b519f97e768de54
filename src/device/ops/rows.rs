//! Operations on rows: norms, softmax, RoPE.

use super::{DeviceOps, DeviceSlice, count, number};
use crate::device::{Arg, DeviceError};
use crate::kernels::ops::{RopeKind, RopeTable};

/// As in the source's `ops_norms.cl`.
const NORM_LANES: usize = 128;

/// A [`RopeTable`] on a device.
#[derive(Clone, Debug)]
pub struct DeviceRopeTable {
    /// `[2][positions][half]`: cosines, then sines.
    angles: DeviceSlice,
    positions: usize,
    half: usize,
}

impl DeviceRopeTable {
    /// How many values a table has on a device.
    pub fn values(table: &RopeTable) -> usize {
        table.angles().iter().map(|angles| angles.len()).sum()
    }
}

impl DeviceOps {
    /// [`Ops::rms_norm`](crate::kernels::ops::Ops::rms_norm): `x`: `[rows][row]`; `weight`: `[n][row]`, taken
    /// in turn.
    ///
    /// # Errors
    /// A device that is lost, or that has no f64.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn rms_norm(
        &self,
        x: &DeviceSlice,
        row: usize,
        weight: Option<&DeviceSlice>,
        eps: f32,
    ) -> Result<(), DeviceError> {
        let ([memory, at], [w, w_at, w_rows]) = (x.args(), cycle(weight, x, row));
        let args = [memory, at, count(row), w, w_at, w_rows, Arg::F32(eps)];
        self.run("op_rms_norm", [rows(x, row), 1], NORM_LANES, &args)
    }

    /// [`Ops::layer_norm`](crate::kernels::ops::Ops::layer_norm); `x`, `weight` and `bias` as in
    /// [`DeviceOps::rms_norm`].
    ///
    /// # Errors
    /// A device that is lost, or that has no f64.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn layer_norm(
        &self,
        x: &DeviceSlice,
        row: usize,
        weight: Option<&DeviceSlice>,
        bias: Option<&DeviceSlice>,
        eps: f32,
    ) -> Result<(), DeviceError> {
        let [memory, at] = x.args();
        let ([w, w_at, w_rows], [b, b_at, b_rows]) = (cycle(weight, x, row), cycle(bias, x, row));
        let args = [memory, at, count(row), w, w_at, w_rows, b, b_at, b_rows, Arg::F32(eps)];
        self.run("op_layer_norm", [rows(x, row), 1], NORM_LANES, &args)
    }

    /// [`Ops::l2_norm`](crate::kernels::ops::Ops::l2_norm): the heads of `len` values at the beginning of
    /// each row: `width` of its `stride` values.
    ///
    /// # Errors
    /// A device that is lost, or that has no f64.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn l2_norm(
        &self,
        x: &DeviceSlice,
        stride: usize,
        width: usize,
        len: usize,
        eps: f32,
    ) -> Result<(), DeviceError> {
        let fits = len > 0 && width.is_multiple_of(len) && width <= stride;
        assert!(fits, "norm: {width} of {stride} in heads of {len}");
        let (heads, n, [memory, at]) = (width / len, len as f32, x.args());
        let numbers = [Arg::F32(eps / n), Arg::F32(1.0 / n.sqrt())];
        let args = [memory, at, count(len), count(heads), count(stride), numbers[0], numbers[1]];
        self.run("op_l2_norm", [rows(x, stride) * heads, 1], NORM_LANES, &args)
    }

    /// [`Ops::softmax`](crate::kernels::ops::Ops::softmax) of each row of `x`: `[rows][n]`.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where `x` is no whole number of rows.
    pub fn softmax(&self, x: &DeviceSlice, n: usize) -> Result<(), DeviceError> {
        let [memory, at] = x.args();
        self.run("op_softmax", [rows(x, n), 1], NORM_LANES, &[memory, at, count(n)])
    }

    /// Copies a table.
    ///
    /// # Errors
    /// As [`DeviceOps::upload`].
    pub fn upload_rope(&self, table: &RopeTable) -> Result<DeviceRopeTable, DeviceError> {
        self.write_rope(table, self.allocate(DeviceRopeTable::values(table))?)
    }

    /// The same to memory that is there.
    ///
    /// # Errors
    /// As [`DeviceOps::write`].
    ///
    /// # Panics
    /// Where it is not of [`DeviceRopeTable::values`].
    pub fn write_rope(&self, table: &RopeTable, angles: DeviceSlice) -> Result<DeviceRopeTable, DeviceError> {
        let [cos, sin] = table.angles();
        assert_eq!(angles.len, cos.len() + sin.len(), "rope: room for a table");
        self.write(&angles.part(0, cos.len()), cos)?;
        self.write(&angles.part(cos.len(), sin.len()), sin)?;
        let positions = table.positions();
        Ok(DeviceRopeTable { angles, positions, half: cos.len() / positions.max(1) })
    }

    /// [`Ops::rope`](crate::kernels::ops::Ops::rope)
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn rope(
        &self,
        kind: RopeKind,
        table: &DeviceRopeTable,
        x: &DeviceSlice,
        heads: usize,
        head_dim: usize,
    ) -> Result<(), DeviceError> {
        self.rope_behind(kind, table, x, heads, head_dim, 0)
    }

    /// [`Ops::rope_behind`](crate::kernels::ops::Ops::rope_behind)
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn rope_behind(
        &self,
        kind: RopeKind,
        table: &DeviceRopeTable,
        x: &DeviceSlice,
        heads: usize,
        head_dim: usize,
        offset: usize,
    ) -> Result<(), DeviceError> {
        let &DeviceRopeTable { ref angles, positions, half } = table;
        assert_eq!(x.len, positions * heads * head_dim, "rope: input and table differ in tokens");
        assert!(offset + 2 * half <= head_dim, "rope: {} values behind {offset} of {head_dim}", 2 * half);
        let ([memory, at], [angles, cos_at]) = (x.args(), angles.args());
        let sin_at = Arg::U64((table.angles.at + positions * half) as u64);
        let [step, apart] = match kind {
            RopeKind::Norm => [2, 1],
            RopeKind::NeoX => [1, number(half)],
        };
        let n = positions * heads * half;
        let sizes = [n, heads, half, heads * head_dim, head_dim, offset].map(count);
        let [n_arg, heads, half, stride, head_dim, offset] = sizes;
        let args = [
            memory,
            at,
            angles,
            cos_at,
            sin_at,
            n_arg,
            heads,
            half,
            stride,
            head_dim,
            offset,
            Arg::U32(step),
            Arg::U32(apart),
        ];
        self.run_each("op_rope", n, &args)
    }
}

/// Rows of so many values.
fn rows(x: &DeviceSlice, row: usize) -> usize {
    assert!(x.is_empty() || row > 0 && x.len.is_multiple_of(row), "{} values in rows of {row}", x.len);
    x.len / row.max(1)
}

/// Rows of weights that the rows of a batch take in turn; where there are none, others in their place.
fn cycle<'a>(weights: Option<&'a DeviceSlice>, x: &'a DeviceSlice, row: usize) -> [Arg<'a>; 3] {
    let whole = |weights: &DeviceSlice| row > 0 && weights.len > 0 && weights.len.is_multiple_of(row);
    assert!(weights.is_none_or(whole), "weights of another length than rows of {row}");
    let [memory, at] = weights.unwrap_or(x).args();
    [memory, at, count(weights.map_or(0, |weights| weights.len / row))]
}
