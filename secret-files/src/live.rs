//! What the text of a secret means, while its file may change: several tokens, the keys of signatures.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{origin, read};

// No Debug: it would print the secret.
pub struct Live<T> {
    /// As it was at the start, by which its file is known.
    given: Arc<str>,
    now: Arc<Mutex<Now<T>>>,
}

struct Now<T> {
    /// The last text that was read, good or not.
    text: String,
    /// The meaning of the last good one.
    meaning: Arc<T>,
}

impl<T: FromStr> Live<T> {
    /// # Errors
    /// When the text means nothing.
    pub fn new(text: &str) -> Result<Self, T::Err> {
        let now = Now { text: text.to_owned(), meaning: Arc::new(text.parse()?) };
        Ok(Self { given: text.into(), now: Arc::new(Mutex::new(now)) })
    }

    /// As its file has it now: for each use, where those are rare enough to read a file. While the file cannot be read, or means
    /// nothing, what it meant last holds: a secret that was withdrawn does not come back.
    pub fn current(&self) -> Arc<T> {
        // Under the lock: an older text would come back otherwise.
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = origin(&self.given) else { return now.meaning.clone() };
        let text = read(&path).unwrap_or_default();
        if text != now.text {
            match (!text.is_empty()).then(|| text.parse()) {
                Some(Ok(meaning)) => now.meaning = Arc::new(meaning),
                // Its reason may hold the secret.
                Some(Err(_)) | None => tracing::warn!(
                    file = %path.display(),
                    "the file of a secret is malformed or cannot be read; the secret that it held last holds"
                ),
            }
            now.text = text;
        }
        now.meaning.clone()
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self { given: self.given.clone(), now: self.now.clone() }
    }
}
