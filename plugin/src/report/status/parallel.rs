//! Processes many items with few threads.

use std::{panic, thread};

/// Maximum number of threads that read files. Up to [`FEW`] items take so little time that a second
/// thread does not pay off.
const MOST_THREADS: usize = 4;
const FEW: usize = 50;

/// Applies `of` to each item in parallel and returns the results in order. A few threads suffice,
/// because the kernel does most of the work.
pub(super) fn in_parallel<T: Sync, R: Send>(items: &[T], of: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let of = &of;
    thread::scope(|scope| {
        let parts = items.chunks(items.len().div_ceil(threads).max(FEW));
        let parts: Vec<_> = parts
            .map(|part| scope.spawn(move || part.iter().map(of).collect::<Vec<R>>()))
            .collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_items() {
        let items: Vec<usize> = (0..1000).collect();
        assert_eq!(
            in_parallel(&items, |item| item * 2),
            items.iter().map(|item| item * 2).collect::<Vec<_>>()
        );
        assert!(in_parallel(&[] as &[usize], |item| *item).is_empty());
    }
}
