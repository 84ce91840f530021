//! Answers that are one list: what is sent was encoded when it came to be, and is only put together.
//!
//! A node with hundreds of pods answers these calls many times a second from what has not changed. Encoding each item anew would make
//! thousands of small pieces of memory for each answer, and all threads of a daemon share where these come from: one that is interrupted
//! there holds up the call.

use std::sync::Arc;

use prost::bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType, message};
use prost::{DecodeError, Message};

use super::{Container, ContainerStats, PodSandbox, PodSandboxStats};

/// The number of every list's only field.
const ITEMS: u32 = 1;

/// Declares a message: its name, its field, the type of the items.
macro_rules! lists {
    ($($(#[$doc:meta])* $name:ident $field:ident $item:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            /// The items: all, in an answer that was received.
            pub $field: Vec<$item>,
            /// Items that are encoded; they are sent before the others.
            pub encoded: Vec<Arc<[u8]>>,
        }

        impl Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                put(&self.encoded, buf);
                message::encode_repeated(ITEMS, &self.$field, buf);
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    ITEMS => message::merge_repeated(wire_type, &mut self.$field, buf, ctx),
                    _ => encoding::skip_field(wire_type, tag, buf, ctx),
                }
            }

            fn encoded_len(&self) -> usize {
                length(&self.encoded) + message::encoded_len_repeated(ITEMS, &self.$field)
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    )*};
}

lists! {
    /// Answer of ListPodSandbox.
    ListPodSandboxResponse items PodSandbox;
    /// Answer of ListContainers.
    ListContainersResponse containers Container;
    /// Answer of ListContainerStats.
    ListContainerStatsResponse stats ContainerStats;
    /// Answer of ListPodSandboxStats.
    ListPodSandboxStatsResponse stats PodSandboxStats;
}

fn put(items: &[Arc<[u8]>], buf: &mut impl BufMut) {
    for item in items {
        encoding::encode_key(ITEMS, WireType::LengthDelimited, buf);
        encoding::encode_varint(item.len() as u64, buf);
        buf.put_slice(item);
    }
}

fn length(items: &[Arc<[u8]>]) -> usize {
    let one = |item: &Arc<[u8]>| {
        encoding::key_len(ITEMS) + encoding::encoded_len_varint(item.len() as u64) + item.len()
    };
    items.iter().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::PodSandboxMetadata;

    fn pod(name: &str) -> PodSandbox {
        let metadata = Some(PodSandboxMetadata { name: name.into(), ..Default::default() });
        PodSandbox { id: name.repeat(200), metadata, ..Default::default() }
    }

    #[test]
    fn items_that_were_encoded_before_arrive_as_all_others() {
        let encoded = vec![pod("a").encode_to_vec().into(), pod("").encode_to_vec().into()];
        let sent = ListPodSandboxResponse { items: vec![pod("b")], encoded };
        let bytes = sent.encode_to_vec();
        assert_eq!(bytes.len(), sent.encoded_len());
        let received = ListPodSandboxResponse::decode(&*bytes).unwrap();
        assert_eq!(received.items, [pod("a"), pod(""), pod("b")]);
        assert_eq!(received.encoded.len(), 0);
    }

    #[test]
    fn every_list_of_the_schema_is_its_items_and_nothing_else() {
        let set = prost_types::FileDescriptorSet::decode(crate::proto::SCHEMA).unwrap();
        let messages: Vec<_> = set.file.iter().flat_map(|file| &file.message_type).collect();
        for (name, field, item) in [
            ("ListPodSandboxResponse", "items", "PodSandbox"),
            ("ListContainersResponse", "containers", "Container"),
            ("ListContainerStatsResponse", "stats", "ContainerStats"),
            ("ListPodSandboxStatsResponse", "stats", "PodSandboxStats"),
        ] {
            let message = messages.iter().find(|message| message.name() == name).unwrap();
            let [only] = &message.field[..] else { panic!("{name} has other fields") };
            assert_eq!(
                (only.name(), only.number(), only.type_name()),
                (field, 1, &*format!(".runtime.v1.{item}"))
            );
        }
    }
}
