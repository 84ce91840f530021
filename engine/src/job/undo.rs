//! Undo as a value: what must be done, in reverse order, if the job fails.

use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;

use crate::Error;

/// One way back. Not started until the job has failed.
type Step = (&'static str, BoxFuture<'static, Result<(), Error>>);

/// A stack of ways back.
#[derive(Default)]
pub struct Undo {
    steps: Mutex<Vec<Step>>,
}

/// What could not be undone.
#[derive(Debug)]
pub struct Left {
    /// Name of the undo step.
    pub step: &'static str,
    /// Why.
    pub error: Error,
}

impl Undo {
    /// Adds a way back for something that has just been done, or is about to be.
    pub fn push(&self, name: &'static str, back: impl Future<Output = Result<(), Error>> + Send + 'static) {
        self.lock().push((name, Box::pin(back)));
    }

    /// Success: nothing is to be undone.
    pub fn commit(&self) {
        self.lock().clear();
    }

    /// Goes all the way back, whatever fails on it, and says what is left.
    pub async fn run(&self) -> Vec<Left> {
        let mut left = Vec::new();
        while let Some((step, back)) = self.pop() {
            if let Err(error) = back.await {
                left.push(Left { step, error });
            }
        }
        left
    }

    fn pop(&self) -> Option<Step> {
        self.lock().pop()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Step>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.lock().iter().map(|(name, _)| *name)).finish()
    }
}
