//! The one task on which a pod's state changes.
//!
//! It takes changes from jobs and exits from the supervisor, one at a time: apply to a copy, write the journal, publish
//! the snapshot, announce the events. It never runs a job's long work, so it is always quick to answer.

use std::sync::Arc;

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;

use super::{PodPhase, Shown, Snapshot, State, Surroundings};
use crate::container::policy;
use crate::exec::{Connection, Event, Supervisor};
use crate::{Error, events};

type Apply = Box<dyn FnOnce(&mut State) -> Result<Answer, Error> + Send>;
/// Called with the fate of the change.
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// What the task is asked for.
pub(super) enum Message {
    /// Change the state.
    Change(Apply),
    /// Watch this supervisor.
    Supervise(Connection),
    /// There is no supervisor any more.
    Unsupervise,
}

/// Wraps a change so that its result travels back to the caller.
pub(super) fn change<T: Send + 'static>(
    change: impl FnOnce(&mut State) -> Result<T, Error> + Send + 'static,
) -> (Message, oneshot::Receiver<Result<T, Error>>) {
    let (sender, receiver) = oneshot::channel();
    let apply: Apply = Box::new(move |state| match change(state) {
        Ok(value) => Ok(Box::new(move |fate| {
            let _ = sender.send(fate.map(|()| value));
        })),
        Err(error) => {
            let _ = sender.send(Err(error.clone()));
            Err(error)
        }
    });
    (Message::Change(apply), receiver)
}

pub(super) struct Actor {
    shown: Arc<Shown>,
    around: Surroundings,
    /// The state the journal holds for certain; `None` after a failed write.
    saved: Option<State>,
    supervisor: Option<Arc<dyn Supervisor>>,
    events: Option<UnboundedReceiver<Event>>,
}

impl Actor {
    pub(super) fn new(shown: Arc<Shown>, around: Surroundings) -> Self {
        let saved = Some(shown.snapshot.load().state.clone());
        Self { shown, around, saved, supervisor: None, events: None }
    }

    /// Runs until the last holder of the pod is gone.
    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.obey(message).await,
                    None => return,
                },
                event = next(&mut self.events) => self.hear(event).await,
            }
        }
    }

    async fn obey(&mut self, message: Message) {
        match message {
            Message::Change(apply) => {
                let old = self.shown.snapshot.load_full();
                let mut state = old.state.clone();
                if let Ok(answer) = apply(&mut state) {
                    answer(self.settle(&old, state).await);
                }
            }
            Message::Supervise(connection) => self.supervise(connection).await,
            Message::Unsupervise => {
                (self.supervisor, self.events) = (None, None);
                let old = self.shown.snapshot.load_full();
                self.publish(&old, old.state.clone());
            }
        }
    }

    /// Journal first, then publish: what the outside has seen is on disk.
    async fn settle(&mut self, old: &Snapshot, state: State) -> Result<(), Error> {
        if self.saved.as_ref().is_some_and(|saved| saved.same(&state)) {
            self.publish(old, state);
            return Ok(());
        }
        self.around.journal.record(self.saved.take(), state.clone()).await?;
        self.saved = Some(state.clone());
        self.publish(old, state);
        Ok(())
    }

    fn publish(&self, old: &Snapshot, state: State) {
        let new = Arc::new(Snapshot::new(state, self.supervisor.clone(), Some(old)));
        self.shown.snapshot.store(new.clone());
        self.shown.version.send_modify(|version| *version += 1);
        self.around.news.changed(&new);
        for event in events::between(old, &new) {
            let _ = self.around.events.send(event);
        }
    }

    /// Takes over what a supervisor says it has, then listens to it.
    async fn supervise(&mut self, connection: Connection) {
        let Connection { supervisor, events, survivors } = connection;
        (self.supervisor, self.events) = (Some(supervisor), Some(events));
        self.amend(move |state| policy::reconcile(state, &survivors)).await;
    }

    async fn hear(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Exited { container, exit }) => {
                self.amend(move |state| policy::exited(state, &container, &exit)).await;
            }
            Some(Event::Gone) | None => self.reconnect().await,
        }
    }

    /// The supervisor's connection ended: it has been shut down, replaced, or it is dead.
    async fn reconnect(&mut self) {
        (self.supervisor, self.events) = (None, None);
        let id = self.shown.snapshot.load().state.record.id.clone();
        match self.around.exec.connect(&id, &self.around.dir).await {
            Ok(Some(connection)) => return self.supervise(connection).await,
            Ok(None) => {}
            Err(error) => tracing::error!(pod = %id, error = %error.chain(), "supervisor lost"),
        }
        let exits = self.around.exec.recorded_exits(&self.around.dir);
        self.amend(move |state| {
            if state.status.phase == PodPhase::Ready {
                state.status.phase = PodPhase::Stopping;
                state.status.message = "the pod's supervisor died".into();
            }
            policy::lost(state, &exits, "the pod's supervisor died");
        })
        .await;
    }

    /// A change that cannot be refused: it has happened already. If the journal cannot be written it is published all the
    /// same, and the next change writes it.
    async fn amend(&mut self, change: impl FnOnce(&mut State)) {
        let old = self.shown.snapshot.load_full();
        let mut state = old.state.clone();
        change(&mut state);
        if let Err(error) = self.settle(&old, state.clone()).await {
            tracing::error!(pod = %state.record.id, error = %error.chain(), "cannot record what happened");
            self.publish(&old, state);
        }
    }
}

/// The next event; never, without a supervisor.
async fn next(events: &mut Option<UnboundedReceiver<Event>>) -> Option<Event> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}
