//! Large buffers of zeros, had without touching their pages and without aborting where memory is short.

use std::alloc::{Layout, alloc_zeroed};

use thiserror::Error;

/// A buffer that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{bytes} bytes of memory cannot be had for {what}")]
pub struct OutOfMemory {
    pub bytes: u128,
    pub what: &'static str,
}

mod sealed {
    /// Plain numbers, for which all bits zero is a value.
    pub trait Number: Copy {}
    impl Number for f32 {}
    impl Number for u16 {}
    impl Number for u32 {}
    impl Number for i8 {}
    impl Number for u8 {}
    impl Number for u128 {}
}

/// A vector of the product of `sizes` zeros. The system gives the pages when they are first written, so
/// that a KV cache for a long context costs only what is used of it.
///
/// # Errors
/// Where the size overflows or the allocator refuses it.
pub fn zeroed<T: sealed::Number>(sizes: &[usize], what: &'static str) -> Result<Vec<T>, OutOfMemory> {
    let out_of_memory = || OutOfMemory {
        bytes: sizes.iter().fold(size_of::<T>() as u128, |all, &n| all.saturating_mul(n as u128)),
        what,
    };
    let len = sizes.iter().try_fold(1usize, |all, &n| all.checked_mul(n)).ok_or_else(out_of_memory)?;
    let layout = Layout::array::<T>(len).map_err(|_| out_of_memory())?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout's size is not zero.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return Err(out_of_memory());
    }
    // SAFETY: `start` was allocated by the global allocator with the layout of `len` T, and zero bits are
    // a T, as `Number` promises.
    Ok(unsafe { Vec::from_raw_parts(start.cast::<T>(), len, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_or_an_error_with_the_size() {
        assert_eq!(zeroed::<f32>(&[2, 3], "a test"), Ok(vec![0.0; 6]));
        assert_eq!(zeroed::<u16>(&[0, 3], "a test"), Ok(vec![]));
        let error = zeroed::<f32>(&[usize::MAX, 2], "a test").unwrap_err();
        assert_eq!(error.bytes, u128::from(u64::MAX) * 8);
        assert!(zeroed::<f32>(&[usize::MAX / 8], "a test").is_err());
    }
}
