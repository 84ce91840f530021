//! Lists longer than one message may be: the Stream* RPCs (KEP-5825).

use std::pin::Pin;

use futures_util::stream::{self, Stream};
use prost::Message;
use tonic::Status;

/// Items per message at most.
const ITEMS: usize = 512;
/// Encoded bytes per message at most, unless one item alone is larger.
const BYTES: usize = 1 << 20;

/// The body of a server-streaming answer.
pub type Batches<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Every item exactly once, in messages of at least one item; none for an empty list.
pub fn batches<I, M, F>(items: Vec<I>, message: F) -> Batches<M>
where
    I: Message + 'static,
    M: Send + 'static,
    F: Fn(Vec<I>) -> M + Send + 'static,
{
    Box::pin(stream::iter(cut(items).into_iter().map(move |batch| Ok(message(batch)))))
}

fn cut<I: Message>(items: Vec<I>) -> Vec<Vec<I>> {
    let mut batches: Vec<Vec<I>> = Vec::new();
    let mut size = 0;
    for item in items {
        let length = item.encoded_len();
        match batches.last_mut() {
            Some(batch) if batch.len() < ITEMS && size + length <= BYTES => {
                size += length;
                batch.push(item);
            }
            _ => {
                size = length;
                batches.push(vec![item]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(count: usize, bytes: usize) -> Vec<String> {
        (0..count).map(|i| format!("{i}{}", "x".repeat(bytes))).collect()
    }

    #[test]
    fn every_item_comes_once_and_in_order() {
        for (count, bytes) in [(0, 1), (1, 1), (ITEMS * 3 + 1, 8), (40, 100_000), (3, BYTES * 2)] {
            let all = items(count, bytes);
            let cut = cut(all.clone());
            assert_eq!(cut.concat(), all);
            assert!(cut.iter().all(|b| !b.is_empty() && b.len() <= ITEMS));
            let fits =
                |b: &Vec<String>| b.len() == 1 || b.iter().map(Message::encoded_len).sum::<usize>() <= BYTES;
            assert!(cut.iter().all(fits));
        }
    }
}
