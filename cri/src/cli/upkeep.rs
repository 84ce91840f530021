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
usage: berth fsck [--repair]

Reads every layer again, behind everybody else who wants the disk, compares it with its digest, and names the images of those
that differ. Fails if anything is damaged and not repaired.

  --repair  make a damaged layer anew from its blob, which is fetched once more from where the image was pulled unless it is
            kept (image.keep_blobs); a registry that asks for a password needs the image removed and pulled again
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
    run("fsck", FSCK, args, &[Known::Switch("--repair")], |command| {
        Box::pin(async move {
            let mut client = AdminClient::new(connect(&command.address).await?);
            let request = CheckImagesRequest { repair: command.option("--repair").is_some() };
            let bad = client.check_images(request).await.map_err(|s| refused(&s))?.into_inner().bad;
            for layer in &bad {
                let what = if layer.repaired { "repaired" } else { "damaged" };
                let (found, images) = (&layer.found, layer.images.join(", "));
                say(format_args!("{what} {}: {found} (images {images})\n", layer.layer));
                if !layer.problem.is_empty() {
                    say(format_args!("  cannot be repaired: {}\n", layer.problem));
                }
            }
            match bad.iter().filter(|layer| !layer.repaired).count() {
                0 => {
                    let again = if bad.is_empty() { "" } else { " again" };
                    say(format_args!("all layers are what they were{again}\n"));
                    Ok(())
                }
                n => Err(format!("{n} damaged; --repair, or remove these images and pull them again")),
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
