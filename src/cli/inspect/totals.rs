//! Sums over tensors: by type and by layer.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::gguf::{TensorInfo, TensorType};

/// A sum over some tensors.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    pub tensors: u64,
    pub parameters: u64,
    pub bytes: u64,
}

impl Total {
    /// The sum over these tensors.
    pub fn of<'a>(tensors: impl IntoIterator<Item = &'a TensorInfo>) -> Total {
        let mut total = Total::default();
        for tensor in tensors {
            total.add(tensor);
        }
        total
    }

    fn add(&mut self, tensor: &TensorInfo) {
        self.tensors += 1;
        self.parameters = self.parameters.saturating_add(tensor.elements());
        self.bytes = self.bytes.saturating_add(tensor.bytes);
    }

    /// Bits an element takes on average.
    pub fn bits_per_weight(&self) -> Option<f64> {
        (self.parameters > 0).then(|| self.bytes as f64 * 8.0 / self.parameters as f64)
    }
}

/// Sums by type, the type with most bytes first.
pub fn by_type(tensors: &[&TensorInfo]) -> Vec<(TensorType, Total)> {
    let mut sums: BTreeMap<TensorType, Total> = BTreeMap::new();
    for tensor in tensors {
        sums.entry(tensor.ty).or_default().add(tensor);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, total)| std::cmp::Reverse(total.bytes));
    sums
}

/// Sums by layer, in the layers' order; what is in no layer comes first, under `None`.
pub fn by_layer<'a>(tensors: &[&'a TensorInfo]) -> Vec<(Option<(&'a str, u64)>, Total)> {
    let mut sums: BTreeMap<Option<(&str, u64)>, Total> = BTreeMap::new();
    for tensor in tensors {
        sums.entry(layer(&tensor.name)).or_default().add(tensor);
    }
    sums.into_iter().collect()
}

/// The layer of a tensor: `blk` and 3 of `blk.3.attn_q.weight`, `v.blk` and 0 of `v.blk.0.ln1.weight`.
pub fn layer(name: &str) -> Option<(&str, u64)> {
    let start = if name.starts_with("blk.") { 0 } else { name.find(".blk.")? + 1 };
    let stack = &name[..start + "blk".len()];
    let number = name[start + "blk.".len()..].split('.').next()?;
    Some((stack, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_name() {
        assert_eq!(layer("blk.12.attn_q.weight"), Some(("blk", 12)));
        assert_eq!(layer("v.blk.0.ln1.weight"), Some(("v.blk", 0)));
        assert_eq!(layer("output.weight"), None);
        assert_eq!(layer("blk.x.y"), None);
        assert_eq!(layer("blk."), None);
    }
}
