//! What the daemon keeps of each pod, so that the death of its supervisor costs nothing: a copy of every descriptor.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use super::Supervisor;
use crate::exec::wire::{self, HAS_LOG, HAS_USER, Kind as Word, Message, Tag};

/// What is kept of a pod so that another supervisor can take it over: messages, ready to be sent, with all descriptors.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// `Adopt`.
    pub(crate) pod: Option<Message>,
    /// `Keep`, by container id.
    pub(crate) containers: HashMap<String, Message>,
}

impl Supervisor {
    pub(super) fn kept<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        let mut kept = self.node.kept.lock().unwrap_or_else(PoisonError::into_inner);
        change(kept.entry(self.pod.clone()).or_default())
    }

    /// Keeps a pod's descriptors; a supervisor that is not set up yet has none.
    pub(crate) fn keep_pod(&self, message: Message) {
        self.able(&message);
        if !message.fds.is_empty() {
            self.kept(|kept| kept.pod = Some(message.with_kind(Word::Adopt)));
        }
    }

    /// The pod's user namespace, which is among its descriptors.
    pub(crate) fn user(&self) -> Option<OwnedFd> {
        let place = wire::POD_NAMESPACES;
        self.kept(|kept| {
            let pod = kept.pod.as_ref().filter(|pod| pod.get(Tag::Has) & HAS_USER != 0)?;
            pod.fds.get(place)?.try_clone().ok()
        })
    }

    /// Keeps a container's descriptors.
    pub(super) fn keep(&self, message: Message) {
        let id = message.text(Tag::Container).to_owned();
        self.kept(|kept| kept.containers.insert(id, message.with_kind(Word::Keep)));
    }

    /// Keeps how a container ended in place of what kept it going.
    pub(super) fn keep_end(&self, id: &str, ended: &Message) {
        self.kept(|kept| {
            if let Some(message) = kept.containers.get_mut(id) {
                message.fds.truncate(1);
                let fresh = Message::new(Word::Keep, 0)
                    .put(Tag::Container, id.as_bytes())
                    .put(Tag::Cgroup, message.text(Tag::Cgroup).as_bytes())
                    .number(Tag::Pid, message.get(Tag::Pid))
                    .number(Tag::At, message.get(Tag::At))
                    .number(Tag::Code, ended.get(Tag::Code))
                    .number(Tag::Oom, ended.get(Tag::Oom))
                    .number(Tag::Ended, ended.get(Tag::Ended));
                let fds = std::mem::take(&mut message.fds);
                *message = fresh;
                message.fds = fds;
            }
        });
    }

    /// Keeps the new log in place of the old one.
    pub(super) fn keep_log(&self, id: &str, log: OwnedFd) {
        self.kept(|kept| {
            let message = kept.containers.get_mut(id).filter(|m| m.get(Tag::Has) & HAS_LOG != 0);
            if let Some(slot) = message.and_then(|m| m.fds.get_mut(1)) {
                *slot = log;
            }
        });
    }
}
