//! A node of ggml's graph, as its evaluation callback shows it.

use std::ffi::c_void;

use llama_cpp_sys_2 as sys;

use super::string;
use crate::error::{Error, Result};

/// A computed node; it lives while the callback runs.
pub struct Node<'a> {
    tensor: &'a sys::ggml_tensor,
}

/// The values of a node in the order of its dimensions, the first one fastest.
pub enum NodeValues {
    F32(Vec<f32>),
    I32(Vec<i32>),
}

impl<'a> Node<'a> {
    pub(super) fn new(tensor: &'a sys::ggml_tensor) -> Self {
        Self { tensor }
    }

    /// The name that the graph's code gave the node, such as `attn_norm-0`.
    pub fn name(&self) -> String {
        // SAFETY: ggml's accessor of an inline, NUL-terminated array of a live tensor.
        unsafe { string(sys::ggml_get_name(self.tensor)) }
    }

    /// ggml's name of the operation, such as `MUL_MAT`.
    pub fn op(&self) -> String {
        // SAFETY: the operation is one of ggml's; the name is static.
        unsafe { string(sys::ggml_op_name(self.tensor.op)) }
    }

    /// The node computes nothing: it shows another one's values in another shape.
    pub fn is_view(&self) -> bool {
        let views = [sys::GGML_OP_VIEW, sys::GGML_OP_RESHAPE, sys::GGML_OP_PERMUTE, sys::GGML_OP_TRANSPOSE];
        views.contains(&self.tensor.op)
    }

    /// The node that a view shows, or whose memory the node writes to, at the end of such a chain.
    pub fn base(&self) -> Option<Node<'a>> {
        // SAFETY: null or a tensor of the same graph, which lives as long as this one.
        unsafe { self.tensor.view_src.as_ref() }.map(Node::new)
    }

    /// What the node is computed from, weights and inputs included.
    pub fn sources(&self) -> impl Iterator<Item = Node<'a>> {
        // SAFETY: each is null or a tensor of the same graph, which lives as long as this one.
        self.tensor.src.iter().filter_map(|&source| unsafe { source.as_ref() }).map(Node::new)
    }

    /// What tells it apart from the other nodes of its graph.
    pub fn address(&self) -> usize {
        std::ptr::from_ref(self.tensor).addr()
    }

    /// Its values are of a type that is kept, and those of a row lie beside one another.
    pub fn is_readable(&self) -> bool {
        [sys::GGML_TYPE_F32, sys::GGML_TYPE_I32].contains(&self.tensor.type_) && self.tensor.nb[0] == 4
    }

    /// The four sizes, the fastest first.
    pub fn sizes(&self) -> [usize; 4] {
        self.tensor.ne.map(|n| n as usize)
    }

    /// Copies the values out, whatever the strides.
    ///
    /// # Errors
    /// For types other than F32 and I32, and for elements that are not beside one another.
    pub fn values(&self) -> Result<NodeValues> {
        match self.tensor.type_ {
            sys::GGML_TYPE_F32 => Ok(NodeValues::F32(self.words(f32::from_le_bytes)?)),
            sys::GGML_TYPE_I32 => Ok(NodeValues::I32(self.words(i32::from_le_bytes)?)),
            other => Err(Error::Ggml(format!("{}: no way to keep values of type {other}", self.name()))),
        }
    }

    fn words<T>(&self, from: impl Fn([u8; 4]) -> T) -> Result<Vec<T>> {
        let [n0, n1, n2, n3] = self.sizes();
        let [step, s1, s2, s3] = self.tensor.nb;
        if step != 4 {
            return Err(Error::Ggml(format!("{}: a row is not contiguous", self.name())));
        }
        let mut row = vec![0u8; n0 * 4];
        let mut out = Vec::with_capacity(n0 * n1 * n2 * n3);
        for i3 in 0..n3 {
            for i2 in 0..n2 {
                for i1 in 0..n1 {
                    let at = i1 * s1 + i2 * s2 + i3 * s3;
                    // SAFETY: the tensor is computed and lives; ggml checks that the range is inside of it; `row`
                    // holds its n0 values of four bytes.
                    unsafe {
                        let to = row.as_mut_ptr().cast::<c_void>();
                        sys::ggml_backend_tensor_get(self.tensor, to, at, row.len());
                    }
                    out.extend(row.chunks_exact(4).map(|w| from([w[0], w[1], w[2], w[3]])));
                }
            }
        }
        Ok(out)
    }
}
