//! A queue for each shard, and a task that works it off: who waits for one shard holds up nobody of another.
//!
//! * An item goes to the queue of the shard that owns its user, as this process knows. A queue is only where it waits: its task
//!   finds out who owns the user, and does what it can.
//! * A queue is made with its first item. The tasks end with the last clone of the lanes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use uuid::Uuid;

use super::Router;

type Start<T> = dyn Fn(mpsc::Receiver<T>) + Send + Sync;

/// Hands items to the tasks of their shards.
pub struct Lanes<T> {
    router: Router,
    /// Items that wait in one queue at most.
    room: usize,
    start: Arc<Start<T>>,
    queues: Arc<Mutex<HashMap<usize, mpsc::Sender<T>>>>,
}

impl<T> Clone for Lanes<T> {
    fn clone(&self) -> Self {
        let Self { router, room, start, queues } = self;
        Self { router: router.clone(), room: *room, start: start.clone(), queues: queues.clone() }
    }
}

impl<T> Lanes<T> {
    /// `start` spawns the task that works a queue off.
    pub fn new(
        router: Router,
        room: usize,
        start: impl Fn(mpsc::Receiver<T>) + Send + Sync + 'static,
    ) -> Self {
        Self { router, room, start: Arc::new(start), queues: Arc::default() }
    }

    /// The queue of a user's shard.
    pub fn of(&self, user_id: Uuid) -> mpsc::Sender<T> {
        let shard = self.router.last_shard(user_id);
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(shard).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(self.room);
            (self.start)(waiting);
            queue
        });
        queue.clone()
    }
}
