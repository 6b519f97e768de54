//! Operations of one element each.

use super::{DeviceOps, DeviceSlice, count};
use crate::device::{Arg, DeviceError};

/// What an operation gives.
type Launched = Result<(), DeviceError>;

macro_rules! of_one {
    ($($name:ident;)*) => {
        impl DeviceOps {
            $(
                /// The same as the method of [`Ops`](crate::kernels::ops::Ops).
                ///
                /// # Errors
                /// A device that is lost.
                pub fn $name(&self, x: &DeviceSlice) -> Launched {
                    self.of_one(concat!("op_", stringify!($name)), x, [0.0; 2])
                }
            )*
        }
    };
}

macro_rules! of_two {
    ($($name:ident($($number:ident),*);)*) => {
        impl DeviceOps {
            $(
                /// The same as the method of [`Ops`](crate::kernels::ops::Ops).
                ///
                /// # Errors
                /// A device that is lost.
                ///
                /// # Panics
                /// Where the operands differ in length.
                pub fn $name(&self, x: &DeviceSlice, y: &DeviceSlice $(, $number: f32)*) -> Launched {
                    assert_eq!(x.len, y.len, "operands differ in length");
                    let numbers: &[f32] = &[$($number),*];
                    let number = |i: usize| numbers.get(i).copied().unwrap_or(0.0);
                    self.of_two(concat!("op_", stringify!($name)), x, y, [number(0), number(1)])
                }
            )*
        }
    };
}

of_one! {
    silu;
    sigmoid;
    exp;
    softplus;
    sqrt_softplus;
    relu_squared;
}

of_two! {
    add();
    mul();
    swiglu();
    swiglu_oai(alpha, limit);
    swiglu_clamped(limit);
    swiglu_limited(limit);
}

impl DeviceOps {
    /// [`Ops::soft_cap`](crate::kernels::ops::Ops::soft_cap)
    ///
    /// # Errors
    /// A device that is lost.
    pub fn soft_cap(&self, x: &DeviceSlice, cap: f32) -> Launched {
        self.of_one("op_soft_cap", x, [1.0 / cap, cap])
    }

    /// [`Ops::scale`](crate::kernels::ops::Ops::scale)
    ///
    /// # Errors
    /// A device that is lost.
    pub fn scale(&self, x: &DeviceSlice, by: f32) -> Launched {
        self.of_one("op_scale", x, [by, 0.0])
    }

    /// `x` within `-limit..=limit`; what is no number stays so.
    ///
    /// # Errors
    /// A device that is lost.
    pub fn clamp(&self, x: &DeviceSlice, limit: f32) -> Launched {
        self.of_one("op_clamp", x, [limit, 0.0])
    }

    /// Each row of `x` times the factor of `by` that is its own.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where `x` is not as many whole rows.
    pub fn scale_rows(&self, x: &DeviceSlice, by: &DeviceSlice) -> Launched {
        let whole = x.is_empty() || by.len > 0 && x.len.is_multiple_of(by.len);
        assert!(whole, "{} values in {} rows", x.len, by.len);
        let ([x_memory, x_at], [y_memory, y_at]) = (x.args(), by.args());
        let row = count(x.len / by.len.max(1));
        self.run_each("op_scale_rows", x.len, &[x_memory, x_at, count(x.len), y_memory, y_at, row])
    }

    /// Each row of `x` times these factors, one for each of its values.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where `x` is no whole number of rows.
    pub fn mul_rows(&self, x: &DeviceSlice, factors: &DeviceSlice) -> Launched {
        let whole = x.is_empty() || factors.len > 0 && x.len.is_multiple_of(factors.len);
        assert!(whole, "{} values in rows of {}", x.len, factors.len);
        self.of_two("op_mul", x, factors, [0.0; 2])
    }

    /// Takes over the first `len` of each `stride` values.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where `to` is no whole number of parts, or there are not as many.
    pub fn copy_parts(&self, to: &DeviceSlice, from: &DeviceSlice, len: usize, stride: usize) -> Launched {
        let parts = to.len / len.max(1);
        let fits = parts == 0 || parts * len == to.len && (parts - 1) * stride + len <= from.len;
        assert!(fits && len <= stride, "{} values of {len} in {stride} of {}", to.len, from.len);
        let ([x_memory, x_at], [y_memory, y_at]) = (to.args(), from.args());
        let args = [x_memory, x_at, count(to.len), y_memory, y_at, count(len), count(stride)];
        self.run_each("op_copy_parts", to.len, &args)
    }

    /// `x += weight * y`, product and sum rounded apart.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where the operands differ in length.
    pub fn add_scaled(&self, x: &DeviceSlice, weight: f32, y: &DeviceSlice) -> Launched {
        assert_eq!(x.len, y.len, "operands differ in length");
        self.of_two("op_add_scaled", x, y, [weight, 0.0])
    }

    /// Takes over other values.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where the operands differ in length.
    pub fn copy(&self, to: &DeviceSlice, from: &DeviceSlice) -> Launched {
        assert_eq!(to.len, from.len, "operands differ in length");
        self.of_two("op_copy", to, from, [0.0; 2])
    }

    /// [`Ops::add_bias`](crate::kernels::ops::Ops::add_bias)
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where `x` is no whole number of rows.
    pub fn add_bias(&self, x: &DeviceSlice, bias: &DeviceSlice) -> Launched {
        let whole = x.is_empty() || bias.len > 0 && x.len.is_multiple_of(bias.len);
        assert!(whole, "{} values in rows of {}", x.len, bias.len);
        self.of_two("op_add", x, bias, [0.0; 2])
    }

    /// [`Ops::gelu`](crate::kernels::ops::Ops::gelu)
    ///
    /// # Errors
    /// A device that is lost.
    pub fn gelu(&self, x: &DeviceSlice) -> Launched {
        let [memory, at] = x.args();
        self.run_each("op_gelu", x.len, &[memory, at, count(x.len), Arg::Memory(&self.gelu)])
    }

    /// [`Ops::geglu`](crate::kernels::ops::Ops::geglu)
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where the operands differ in length.
    pub fn geglu(&self, gate: &DeviceSlice, up: &DeviceSlice) -> Launched {
        assert_eq!(gate.len, up.len, "operands differ in length");
        let ([x, x_at], [y, y_at]) = (gate.args(), up.args());
        let args = [x, x_at, count(gate.len), y, y_at, Arg::Memory(&self.gelu)];
        self.run_each("op_geglu", gate.len, &args)
    }

    fn of_one(&self, kernel: &str, x: &DeviceSlice, [a, b]: [f32; 2]) -> Launched {
        let [memory, at] = x.args();
        self.run_each(kernel, x.len, &[memory, at, count(x.len), Arg::F32(a), Arg::F32(b)])
    }

    /// Second operands are taken in turn.
    fn of_two(&self, kernel: &str, x: &DeviceSlice, y: &DeviceSlice, [a, b]: [f32; 2]) -> Launched {
        let ([x_memory, x_at], [y_memory, y_at]) = (x.args(), y.args());
        let (n, y_n) = (count(x.len), count(y.len));
        self.run_each(kernel, x.len, &[x_memory, x_at, n, y_memory, y_at, y_n, Arg::F32(a), Arg::F32(b)])
    }
}
