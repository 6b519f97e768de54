//! Operations that carry a state from token to token: the short convolution, the delta rule and
//! selective scans.
//!
//! All of them go token by token, so that the bits do not depend on how a text is cut into passes; threads
//! take rows of the batch (where these do not depend on one another) or rows of the state.

pub(in crate::kernels) mod channel_scan;
pub(in crate::kernels) mod conv;
pub(in crate::kernels) mod delta;
pub(in crate::kernels) mod scan;

pub use channel_scan::{ChannelRows, ChannelScan};
pub use conv::CausalConv;
pub use delta::{Decay, DeltaRule, HeadMap, StridedRows};
pub use scan::SelectiveScan;
