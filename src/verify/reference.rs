//! Where the values come from that a run is compared with, and which rows of a node they are of.

use crate::model::NodeId;

use super::VerifyError;

/// Values of a node in the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Values<T> {
    /// The tokens of the pass that they are of; all where not given.
    pub rows: Option<Vec<usize>>,
    /// `[tokens or rows][values a token]`
    pub values: Vec<T>,
}

/// Where reference values come from.
pub trait Reference {
    /// A node of floats of this pass; `None` where the reference does not have it.
    ///
    /// # Errors
    /// Where it cannot be had.
    fn floats(&mut self, pass: &str, id: &NodeId<'_>) -> Result<Option<Values<f32>>, VerifyError>;

    /// A node of indices.
    ///
    /// # Errors
    /// Where it cannot be had.
    fn indices(&mut self, pass: &str, id: &NodeId<'_>) -> Result<Option<Values<u32>>, VerifyError>;

    /// The token that follows the pass, where the reference says which.
    ///
    /// # Errors
    /// Where it cannot be had.
    fn token(&mut self, step: usize) -> Result<Option<u32>, VerifyError>;
}

/// Which rows of a node its reference has.
pub(super) struct Rows {
    pub rows: Option<Vec<usize>>,
    /// The tokens to judge, rising.
    pub judged: Vec<usize>,
    /// Values of a row.
    pub len: usize,
}

impl Rows {
    pub fn new<T>(
        pass: &str,
        id: &NodeId<'_>,
        tokens: usize,
        values: usize,
        reference: &Values<T>,
    ) -> Result<Rows, VerifyError> {
        let len = values / tokens.max(1);
        let rows = reference.rows.as_ref().map_or(tokens, Vec::len);
        let outside = reference.rows.iter().flatten().any(|&row| row >= tokens);
        if outside || reference.values.len() != rows * len || len == 0 {
            return Err(VerifyError::Shape {
                node: format!("{pass}/{id}"),
                found: values,
                wanted: reference.values.len(),
                tokens,
                rows,
            });
        }
        let judged = reference.rows.clone().unwrap_or_else(|| (0..tokens).collect());
        Ok(Rows { rows: reference.rows.clone(), judged, len })
    }

    /// The rows of the reference with their tokens.
    fn pairs<'r, T>(&'r self, reference: &'r [T]) -> impl Iterator<Item = (usize, &'r [T])> {
        let token = |n: usize| self.rows.as_ref().map_or(n, |rows| rows[n]);
        reference.chunks_exact(self.len).enumerate().map(move |(n, row)| (token(n), row))
    }

    /// Those of them that are to be judged.
    pub fn judged<'r, T>(&'r self, reference: &'r [T]) -> impl Iterator<Item = (usize, &'r [T])> {
        self.pairs(reference).filter(|(row, _)| self.judged.binary_search(row).is_ok())
    }

    /// Puts the reference in the place of the values that it has, in some rows; returns in how many.
    pub fn put_where<T: Copy>(
        &self,
        reference: &[T],
        values: &mut [T],
        wanted: impl Fn(usize) -> bool,
    ) -> usize {
        let mut rows = 0;
        for (row, reference) in self.pairs(reference).filter(|(row, _)| wanted(*row)) {
            values[row * self.len..][..self.len].copy_from_slice(reference);
            rows += 1;
        }
        rows
    }
}
