//! Operations that carry a state from token to token.

use super::{DeviceOps, DeviceSlice, OPS_LANES, count};
use crate::device::{Arg, DeviceError};

/// As in the source's `ops_recurrent.cl`: lanes of a group, and rows of states that it has.
const SCAN_LANES: usize = 64;
const SCAN_ROWS: usize = SCAN_LANES / 16;
/// Values of a state's row at most: a group's lanes hold them. A multiple of sixteen.
pub(in crate::device) const MOST_STATE_LEN: usize = 256;

/// The weights of a [`CausalConv`](crate::kernels::ops::CausalConv) on a device.
#[derive(Clone, Debug)]
pub struct DeviceConv {
    pub channels: usize,
    /// `[taps][channels]`
    pub weight: DeviceSlice,
    /// `[channels]`
    pub bias: Option<DeviceSlice>,
}

impl DeviceOps {
    /// [`Ops::causal_conv`](crate::kernels::ops::Ops::causal_conv), with SiLU where that is wanted: `x` and
    /// `out`, which are not the same: `[tokens][channels]`; `window`: `[taps - 1][channels]`.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn causal_conv(
        &self,
        conv: &DeviceConv,
        silu: bool,
        x: &DeviceSlice,
        window: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let &DeviceConv { channels: n, ref weight, ref bias } = conv;
        let whole = n > 0 && !weight.is_empty() && weight.len.is_multiple_of(n);
        assert!(whole, "convolution: {} weights of {n} channels", weight.len);
        assert_eq!(window.len, weight.len - n, "convolution: window");
        assert!(x.len == out.len && x.len.is_multiple_of(n), "convolution: input and output");
        assert!(bias.as_ref().is_none_or(|bias| bias.len == n), "convolution: bias");
        let (tokens, taps) = (x.len / n, weight.len / n);
        let [x, x_at] = x.args();
        let [window, window_at] = window.args();
        let [bias_memory, bias_at] = bias.as_ref().unwrap_or(weight).args();
        let [weight, weight_at] = weight.args();
        let [outs, out_at] = out.args();
        let shape = [count(n), count(taps), count(tokens)];
        let flag = |is: bool| Arg::U32(u32::from(is));
        let arrays = [x, x_at, window, window_at, weight, weight_at, bias_memory, bias_at, outs, out_at];
        let flags = [flag(bias.is_some()), flag(silu)];
        self.run_each("op_causal_conv", out.len, &[&arrays[..], &shape, &flags].concat())?;
        match tokens {
            // Of one token, whoever has a channel has remembered it.
            0 | 1 => Ok(()),
            _ => {
                let groups = n.div_ceil(OPS_LANES);
                let args = [&[x, x_at, window, window_at][..], &shape].concat();
                self.run("op_conv_window", [groups, 1], OPS_LANES, &args)
            }
        }
    }
}

/// What a model says of a selective scan, on a device.
#[derive(Clone, Debug)]
pub struct DeviceScan {
    /// Rows of a head.
    pub head_len: usize,
    /// Groups of heads with the same B and C; divides the heads.
    pub groups: usize,
    /// Values of a row's state: [`MOST_STATE_LEN`] at most.
    pub state_len: usize,
    /// By which states decay: `[heads]`, or `[heads][state_len]` of heads of one row.
    pub a: DeviceSlice,
    /// How much of its input a row passes on: `[heads]`.
    pub d: DeviceSlice,
}

/// The rows of a scan: `x` as `[tokens][..]`, of which each row begins with `heads * head_len` values; B and
/// C as `[tokens][..]`, of which each row begins with `groups * state_len`; strides are values a token.
struct ScanRows {
    x: DeviceSlice,
    x_stride: usize,
    dt: DeviceSlice,
    b: DeviceSlice,
    c: DeviceSlice,
    bc_stride: usize,
}

impl DeviceOps {
    /// Whether scans with states of so many values a row can be done here.
    pub fn takes_scan(&self, state_len: usize) -> bool {
        (1..=MOST_STATE_LEN).contains(&state_len)
    }

    /// [`Ops::selective_scan`](crate::kernels::ops::Ops::selective_scan): `xbc`: `[tokens][x: heads *
    /// head_len][B: groups * state_len][C: the same]`; `dt`: `[tokens][heads]`, softplus taken; `state`:
    /// `[heads][head_len][state_len]`; `out`: `[tokens][heads * head_len]`.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn selective_scan(
        &self,
        scan: &DeviceScan,
        xbc: &DeviceSlice,
        dt: &DeviceSlice,
        state: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let (inner, group) = (scan.d.len * scan.head_len, scan.groups * scan.state_len);
        let stride = inner + 2 * group;
        assert!(xbc.len.is_multiple_of(stride), "scan: rows");
        if xbc.is_empty() {
            return Ok(());
        }
        let from = |at: usize| xbc.part(at, xbc.len - at);
        let (x, b, c, dt) = (xbc.clone(), from(inner), from(inner + group), dt.clone());
        self.scan(scan, &ScanRows { x, x_stride: stride, dt, b, c, bc_stride: stride }, state, out)
    }

    /// [`Ops::channel_scan`](crate::kernels::ops::Ops::channel_scan): heads of one row, all of one group. `x`
    /// and `dt`, of which softplus is taken: `[tokens][heads]`; `b` and `c`: `[tokens][state_len]`; `state`:
    /// `[heads][state_len]`; `out`: `[tokens][heads]`.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn channel_scan(
        &self,
        scan: &DeviceScan,
        [x, dt]: [&DeviceSlice; 2],
        [b, c]: [&DeviceSlice; 2],
        state: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let (channels, n) = (scan.d.len, scan.state_len);
        assert!(scan.head_len == 1 && scan.groups == 1 && scan.a.len == channels * n, "scan: rates");
        assert!(b.len == c.len && b.len * channels == x.len * n, "scan: B and C");
        let [x, dt, b, c] = [x, dt, b, c].map(Clone::clone);
        self.scan(scan, &ScanRows { x, x_stride: channels, dt, b, c, bc_stride: n }, state, out)
    }

    fn scan(
        &self,
        scan: &DeviceScan,
        rows: &ScanRows,
        state: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let &DeviceScan { head_len, groups, state_len: n, ref a, ref d } = scan;
        let (heads, inner) = (d.len, d.len * head_len);
        assert!(groups > 0 && heads > 0 && heads.is_multiple_of(groups), "scan: heads");
        assert!((1..=MOST_STATE_LEN).contains(&n) && state.len == inner * n, "scan: state");
        let each = a.len != heads;
        assert!(!each || head_len == 1 && a.len == inner * n, "scan: rates");
        let tokens = rows.dt.len / heads;
        let whole = rows.dt.len == tokens * heads && rows.x.len == tokens * rows.x_stride;
        assert!(whole && out.len == tokens * inner, "scan: rows");
        if tokens == 0 {
            return Ok(());
        }
        let ([x, x_at], [dt, dt_at]) = (rows.x.args(), rows.dt.args());
        let ([b, b_at], [c, c_at]) = (rows.b.args(), rows.c.args());
        let ([a, a_at], [d, d_at]) = (a.args(), d.args());
        let ([state, state_at], [outs, out_at]) = (state.args(), out.args());
        let (x_stride, bc_stride) = (count(rows.x_stride), count(rows.bc_stride));
        let inputs = [x, x_at, x_stride, dt, dt_at, b, b_at, c, c_at, bc_stride];
        let others = [a, a_at, Arg::U32(u32::from(each)), d, d_at, state, state_at, outs, out_at];
        let sizes = [heads, head_len, heads / groups, n, tokens].map(count);
        let args = [&inputs[..], &others, &sizes].concat();
        self.run("op_selective_scan", [inner.div_ceil(SCAN_ROWS), 1], SCAN_LANES, &args)
    }
}
