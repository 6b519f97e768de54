//! Products of a pass: on the device what is there, the rest on the CPU meanwhile, as its weights come.

use crate::device::{self, DeviceError, DeviceMatrix, Pending};
use crate::kernels::{Kernels, matmul_batch};
use crate::store::{Store, StoreError, WeightId};

use super::state::Inputs;
use super::weights::{HeadMatrices, Linear, Matrix};

/// A product of a pass: `[T][rows]` of `[T][cols]`.
pub(super) struct Product<'a> {
    pub matrix: &'a Matrix,
    pub inputs: &'a Inputs,
    pub out: &'a mut [f32],
}

/// Several products of one input, with their factors; biases are left to
/// [`add_bias`](super::run::add_bias), as they are nodes of their own.
pub(super) fn project(
    kernels: &'static Kernels,
    store: &Store,
    inputs: &Inputs,
    outputs: &mut [(&Linear, &mut [f32])],
) -> Result<(), StoreError> {
    let products = outputs.iter_mut().map(|(linear, out)| Product { matrix: &linear.matrix, inputs, out });
    multiply(kernels, store, products.collect())?;
    for (linear, out) in outputs {
        if let Some(scale) = linear.scale {
            kernels.ops().scale(out, scale);
        }
    }
    Ok(())
}

/// A product of each head with an input of its own, `[rows][cols]` each; `out`: `[heads][rows][outputs]`. The
/// matrices' bytes may be held already.
pub(super) fn multiply_heads(
    kernels: &'static Kernels,
    store: &Store,
    matrices: &HeadMatrices,
    held: Option<&[u8]>,
    inputs: &[Inputs],
    out: &mut [f32],
) -> Result<(), StoreError> {
    if out.is_empty() {
        return Ok(());
    }
    let each = out.len() / matrices.heads();
    if let Some(matrix) = store.find_on_device([matrices.id()].into_iter()).remove(0) {
        let rows = matrices.rows();
        let heads: Vec<DeviceMatrix> =
            (0..matrices.heads()).map(|head| matrix.part(head * rows..(head + 1) * rows)).collect();
        let products = heads.iter().zip(inputs).zip(out.chunks_exact_mut(each));
        let products = products.map(|((matrix, inputs), out)| device::Product {
            matrix,
            x: inputs.get(matrices.activation()),
            out,
        });
        match begin(store, products.collect()).and_then(finish) {
            Ok(()) => return Ok(()),
            Err(error) => not_computed(store, &error),
        }
    }
    let outputs = out.chunks_exact_mut(each);
    let own = if held.is_none() { Some(store.acquire(matrices.id())?) } else { None };
    let bytes = held.or(own.as_deref()).unwrap_or_default();
    let jobs = outputs.zip(inputs).enumerate().map(|(head, (out, x))| matrices.job(head, bytes, x, out));
    matmul_batch(kernels, &mut jobs.collect::<Vec<_>>());
    Ok(())
}

/// Begins products on the device.
fn begin<'p>(store: &Store, products: Vec<device::Product<'p>>) -> Result<Option<Pending<'p>>, DeviceError> {
    match store.device().filter(|_| !products.is_empty()) {
        Some(device) => device.begin(products).map(Some),
        None => Ok(None),
    }
}

/// A device that has no memory for inputs and outputs of this pass may have it for the next one's.
pub(super) fn not_computed(store: &Store, error: &DeviceError) {
    if !matches!(error, DeviceError::OutOfMemory { .. }) {
        store.device_failed(error);
    }
}

fn finish(pending: Option<Pending<'_>>) -> Result<(), DeviceError> {
    pending.map_or(Ok(()), Pending::finish)
}

/// Computes products, each where its weights are: those on the device while the CPU computes the others.
pub(super) fn multiply(
    kernels: &'static Kernels,
    store: &Store,
    mut products: Vec<Product<'_>>,
) -> Result<(), StoreError> {
    // A pass over no tokens describes the graph and reads nothing.
    products.retain(|product| !product.out.is_empty());
    if store.device().is_none() {
        return multiply_here(kernels, store, products);
    }
    let matrices = store.find_on_device(products.iter().map(|product| product.matrix.id));
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for (product, matrix) in products.into_iter().zip(matrices) {
        match matrix {
            Some(matrix) => theirs.push((product, matrix)),
            None => ours.push(product),
        }
    }
    let on_device = theirs.iter_mut().map(|(product, matrix)| device::Product {
        matrix,
        x: product.inputs.get(product.matrix.activation()),
        out: &mut *product.out,
    });
    let pending = begin(store, on_device.collect());
    let computed = multiply_here(kernels, store, ours);
    let finished = pending.and_then(finish);
    computed?;
    if let Err(error) = finished {
        not_computed(store, &error);
        return multiply_here(kernels, store, theirs.into_iter().map(|(product, _)| product).collect());
    }
    Ok(())
}

/// Computes products on the CPU as their weights come: all that are in memory in one parallel region, then
/// those that have come meanwhile.
pub(super) fn multiply_here(
    kernels: &'static Kernels,
    store: &Store,
    mut products: Vec<Product<'_>>,
) -> Result<(), StoreError> {
    while !products.is_empty() {
        let ids: Vec<WeightId> = products.iter().map(|product| product.matrix.id).collect();
        let mut here = store.acquire_some(&ids)?.into_iter().peekable();
        let (mut ready, mut rest) = (Vec::new(), Vec::new());
        for (i, product) in products.into_iter().enumerate() {
            match here.next_if(|(at, _)| *at == i) {
                Some((_, guard)) => ready.push((product, guard)),
                None => rest.push(product),
            }
        }
        let jobs =
            ready.iter_mut().map(|(product, guard)| product.matrix.job(guard, product.inputs, product.out));
        matmul_batch(kernels, &mut jobs.collect::<Vec<_>>());
        products = rest;
    }
    Ok(())
}
