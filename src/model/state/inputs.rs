//! One input of matrix products, rounded once for each activation type that its weights want.

use crate::kernels::ops::Ops;
use crate::quant::{ActivationType, Activations, NonFinite};

/// See the module. Its buffers are kept from one use to the next.
#[derive(Debug, Default)]
pub(in crate::model) struct Inputs {
    by_type: Vec<(ActivationType, Activations)>,
    /// How many of them hold the input at hand.
    used: usize,
}

impl Inputs {
    /// Rounds `x` (rows of `cols`) to the given types; what was there before is gone.
    pub fn prepare(
        &mut self,
        ops: &Ops,
        x: &[f32],
        cols: usize,
        types: impl IntoIterator<Item = ActivationType>,
    ) -> Result<(), NonFinite> {
        self.used = 0;
        for ty in types {
            if self.has(ty) {
                continue;
            }
            if self.used == self.by_type.len() {
                self.by_type.push((ty, Activations::new()));
            }
            let slot = &mut self.by_type[self.used];
            slot.0 = ty;
            slot.1.quantize_by(ops, ty, x, cols)?;
            self.used += 1;
        }
        Ok(())
    }

    /// Takes rows of another input, in all its types.
    pub fn gather(&mut self, from: &Inputs, rows: &[usize]) {
        self.used = from.used;
        while self.by_type.len() < from.used {
            self.by_type.push((ActivationType::F32, Activations::new()));
        }
        for (to, (ty, x)) in self.by_type.iter_mut().zip(&from.by_type[..from.used]) {
            to.0 = *ty;
            x.gather_into(rows, &mut to.1);
        }
    }

    /// Whether the input was prepared as this type.
    pub fn has(&self, ty: ActivationType) -> bool {
        self.by_type[..self.used].iter().any(|(t, _)| *t == ty)
    }

    /// The input as this type.
    ///
    /// # Panics
    /// Where it was not prepared as such: the forward pass's mistake.
    pub fn get(&self, ty: ActivationType) -> &Activations {
        let found = self.by_type[..self.used].iter().find(|(t, _)| *t == ty);
        &found.expect("prepared as every type that the weights want").1
    }
}
