//! `berth inspect`, `berth fsck`, `berth gc`: looking after the images of a node.

use std::process::ExitCode;

use super::args::Args;
use super::connect::{Known, connect, refused, run};
use super::say;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{CheckImagesRequest, CollectImagesRequest, InspectImageRequest};
use crate::server::LARGEST_MESSAGE;

const INSPECT: &str = "\
usage: berth inspect IMAGE...

Prints everything known of images as JSON: names, manifest, configuration, layers and whether they are kept as they came.
";

const FSCK: &str = "\
usage: berth fsck

Reads every layer again, compares it with its digest, and names the images of those that differ. Changes nothing; remove
such an image and pull it again. Fails if anything is damaged.
";

const GC: &str = "\
usage: berth gc [--all]

Removes images that have no name, and what broken pulls have left. Images that are pinned, used by a container or being
pulled stay.

  --all  remove every other image too, named or not
";

pub(super) fn inspect(args: Args) -> ExitCode {
    run("inspect", INSPECT, args, &[], |command| {
        Box::pin(async move {
            let channel = connect(&command.address).await?;
            let mut client = AdminClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
            for image in command.named("an image")? {
                let request = InspectImageRequest { image: image.clone() };
                let answer = client.inspect_image(request).await.map_err(|s| refused(&s))?;
                say(format_args!("{}\n", answer.into_inner().json));
            }
            Ok(())
        })
    })
}

pub(super) fn fsck(args: Args) -> ExitCode {
    run("fsck", FSCK, args, &[], |command| {
        Box::pin(async move {
            let mut client = AdminClient::new(connect(&command.address).await?);
            let answer = client.check_images(CheckImagesRequest {}).await.map_err(|s| refused(&s))?;
            let bad = answer.into_inner().bad;
            for layer in &bad {
                say(format_args!(
                    "damaged {}: {} (images {})\n",
                    layer.layer,
                    layer.found,
                    layer.images.join(", ")
                ));
            }
            match bad.len() {
                0 => {
                    say("all layers are what they were\n");
                    Ok(())
                }
                n => Err(format!("{n} damaged; remove these images and pull them again")),
            }
        })
    })
}

pub(super) fn gc(args: Args) -> ExitCode {
    run("gc", GC, args, &[Known::Switch("--all")], |command| {
        Box::pin(async move {
            if let Some(operand) = command.operands.first() {
                return Err(format!("unexpected argument {operand}"));
            }
            let mut client = AdminClient::new(connect(&command.address).await?);
            let request = CollectImagesRequest { all: command.option("--all").is_some() };
            let answer = client.collect_images(request).await.map_err(|s| refused(&s))?.into_inner();
            for image in &answer.images {
                say(format_args!("removed {image}\n"));
            }
            say(format_args!("freed {}\n", super::images::bytes(answer.freed_bytes)));
            Ok(())
        })
    })
}
