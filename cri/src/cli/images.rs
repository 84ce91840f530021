//! `berth images`, `berth pull` and `berth rmi`: images without a CRI client at hand.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tonic::Request;
use tonic::transport::Channel;

use super::args::Args;
use super::connect::{Command, Known, connect, refused, run};
use super::{login, progress, say};
use crate::proto::image_service_client::ImageServiceClient;
use crate::proto::{
    Image, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest, RemoveImageRequest,
};
use crate::server::LARGEST_MESSAGE;

const HELP: &str = "\
usage: berth images [--json] [--address unix:///PATH]
       berth pull IMAGE... [--creds USER:PASSWORD | --authfile FILE] [--address unix:///PATH]
       berth rmi IMAGE... [--address unix:///PATH]

Lists, pulls or removes images of the daemon. rmi takes all names of an image away.
An authfile is what `docker login` or `podman login` writes.
";

/// A pull may take as long as it makes progress; the daemon watches over that.
const PULL: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn list(args: Args) -> ExitCode {
    run("images", HELP, args, &[], |command| {
        Box::pin(async move {
            if let Some(operand) = command.operands.first() {
                return Err(format!("unexpected argument {operand}"));
            }
            let answer = client(&command).await?.list_images(ListImagesRequest::default()).await;
            let images = answer.map_err(|s| refused(&s))?.into_inner().images;
            say(if command.json { json(&images) } else { table(&images) });
            Ok(())
        })
    })
}

pub(super) fn pull(args: Args) -> ExitCode {
    let known = [Known::Value("--creds"), Known::Value("--authfile")];
    run("pull", HELP, args, &known, |command| {
        Box::pin(async move {
            let channel = connect(&command.address).await?;
            for name in command.named("an image")? {
                Box::pin(pull_one(&command, channel.clone(), name)).await?;
            }
            Ok(())
        })
    })
}

async fn pull_one(command: &Command, channel: Channel, name: &str) -> Result<(), String> {
    let started = Instant::now();
    let mut client = client_on(channel.clone());
    let auth = login::auth_config(login::of(command, "--creds", "--authfile", name)?);
    let mut request = Request::new(PullImageRequest { image: spec(name), auth, ..Default::default() });
    request.set_timeout(PULL);
    let pull = Box::pin(progress::watch(channel, "PullImage", name, Box::pin(client.pull_image(request))));
    let pulled = pull.await.map_err(|s| refused(&s))?.into_inner();
    let status = ImageStatusRequest { image: spec(&pulled.image_ref), verbose: false };
    let image = client.image_status(status).await.map_err(|s| refused(&s))?.into_inner().image;
    let size = image.map_or(0, |image| image.size);
    let took = started.elapsed().as_secs_f64();
    say(format_args!("{name}  {}  {}  {took:.1} s\n", pulled.image_ref, bytes(size)));
    Ok(())
}

pub(super) fn remove(args: Args) -> ExitCode {
    run("rmi", HELP, args, &[], |command| {
        Box::pin(async move {
            let mut client = client(&command).await?;
            for name in command.named("an image")? {
                let status = ImageStatusRequest { image: spec(name), verbose: false };
                let found = client.image_status(status).await.map_err(|s| refused(&s))?.into_inner().image;
                let Some(image) = found else { return Err(format!("{name}: no such image")) };
                let request = RemoveImageRequest { image: spec(&image.id) };
                client.remove_image(request).await.map_err(|s| refused(&s))?;
                for tag in image.repo_tags.iter().chain(&image.repo_digests) {
                    say(format_args!("untagged {tag}\n"));
                }
                say(format_args!("removed {}\n", image.id));
            }
            Ok(())
        })
    })
}

async fn client(command: &Command) -> Result<ImageServiceClient<Channel>, String> {
    Ok(client_on(connect(&command.address).await?))
}

fn client_on(channel: Channel) -> ImageServiceClient<Channel> {
    ImageServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE)
}

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: name.to_owned(), ..Default::default() })
}

/// One line per name; an image without any is shown by its id alone.
fn table(images: &[Image]) -> String {
    let mut text = format!("{:<60} {:<14} {:>10}\n", "IMAGE", "ID", "SIZE");
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        let none = ["<none>".to_owned()];
        for name in if names.is_empty() { &none[..] } else { names } {
            let _ = writeln!(text, "{name:<60} {id:<14} {:>10}", bytes(image.size));
        }
    }
    text
}

fn json(images: &[Image]) -> String {
    let image = |i: &Image| {
        serde_json::json!({
            "id": i.id, "repoTags": i.repo_tags, "repoDigests": i.repo_digests, "size": i.size, "pinned": i.pinned,
        })
    };
    format!("{:#}\n", serde_json::Value::from(images.iter().map(image).collect::<Vec<_>>()))
}

/// Binary units, three digits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn bytes(n: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| n >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", n as f64 / *size as f64),
        None => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_an_image_has_a_line() {
        let image = |tags: &[&str], digests: &[&str]| Image {
            id: "sha256:0123456789abcdef".into(),
            repo_tags: tags.iter().map(|&t| t.into()).collect(),
            repo_digests: digests.iter().map(|&d| d.into()).collect(),
            size: 3 << 20,
            ..Image::default()
        };
        let text =
            table(&[image(&["a:1", "a:2"], &["a@sha256:1"]), image(&[], &["b@sha256:2"]), image(&[], &[])]);
        let names: Vec<&str> = text.lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect();
        assert_eq!(names, ["a:1", "a:2", "b@sha256:2", "<none>"]);
        assert!(text.contains("0123456789ab ") && text.contains("3.0 MiB"), "{text}");
    }
}
