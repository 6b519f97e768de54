//! How many tokens each text runs in a pass.

/// How many of the tokens that are pending run in the next pass: of a text under way its one token, of the
/// prompts as many as a chunk holds, in equal parts, the short ones whole.
pub(super) fn shares(pending: &[usize], chunk: usize) -> Vec<usize> {
    let mut shares = vec![0; pending.len()];
    let mut prompts = Vec::new();
    for (at, &pending) in pending.iter().enumerate() {
        match pending {
            1 => shares[at] = 1,
            _ => prompts.push(at),
        }
    }
    prompts.sort_by_key(|&at| pending[at]);
    let mut left = chunk;
    for (done, &at) in prompts.iter().enumerate() {
        // What the short ones leave is for the longer ones.
        shares[at] = pending[at].min(left.div_ceil(prompts.len() - done));
        left -= shares[at];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn texts_under_way_run_a_token_each() {
        assert_eq!(shares(&[1, 1, 1], 64), [1, 1, 1]);
        assert_eq!(shares(&[1, 500, 1], 64), [1, 64, 1]);
    }

    #[test]
    fn prompts_share_a_chunk_and_short_ones_come_whole() {
        assert_eq!(shares(&[4000], 128), [128]);
        assert_eq!(shares(&[4000, 20], 128), [108, 20]);
        assert_eq!(shares(&[4000, 20, 4000], 128), [54, 20, 54]);
        assert_eq!(shares(&[40, 20, 30], 128), [40, 20, 30]);
        assert_eq!(shares(&[], 128), [0usize; 0]);
    }

    #[test]
    fn a_chunk_is_never_exceeded_and_never_left_where_there_is_work() {
        for chunk in 1..20 {
            for prompts in [vec![2; 30], vec![100, 3, 7], vec![2, 2, 90, 5], vec![2]] {
                let shares = shares(&prompts, chunk);
                let wanted = prompts.iter().sum::<usize>().min(chunk);
                assert_eq!(shares.iter().sum::<usize>(), wanted, "{prompts:?} in {chunk}");
            }
        }
    }
}
