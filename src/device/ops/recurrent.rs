//! Operations that carry a state from token to token.

use super::{DeviceOps, DeviceSlice, OPS_LANES, count};
use crate::device::{Arg, DeviceError};

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
