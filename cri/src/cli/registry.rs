//! `berth push`, `berth tag`, `berth search`: images and the registries they go to.

use std::fmt::Write;
use std::process::ExitCode;

use super::args::Args;
use super::connect::{Command, Known, connect, refused, run};
use super::{login, progress, say};
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{PushImageRequest, SearchImagesRequest, TagImageRequest};

const PUSH: &str = "\
usage: berth push IMAGE [NAME] [--creds USER:PASSWORD] [--authfile FILE] [--from-creds USER:PASSWORD]

Sends an image to the registry in its name, or in NAME, every byte as it came: all digests stay.

  --creds, --authfile  for the registry it goes to
  --from-creds         for the registry it came from, if a layer is not kept here and has to be fetched once more
";

const TAG: &str = "\
usage: berth tag IMAGE NAME

Gives an image another name, which leaves whoever had it.
";

const SEARCH: &str = "\
usage: berth search [REGISTRY/]TERM [--json] [--creds USER:PASSWORD | --authfile FILE]
       berth search --tags IMAGE

Lists the repositories of a registry (Docker Hub, if none is named) whose names contain TERM, or the tags of one.
";

pub(super) fn push(args: Args) -> ExitCode {
    let known = [Known::Value("--creds"), Known::Value("--authfile"), Known::Value("--from-creds")];
    run("push", PUSH, args, &known, |command| Box::pin(push_image(command)))
}

async fn push_image(command: Command) -> Result<(), String> {
    let (image, target) = match command.operands.as_slice() {
        [image] => (image.clone(), image.clone()),
        [image, target] => (image.clone(), target.clone()),
        _ => return Err("expected the name of an image, and perhaps its name in the registry".into()),
    };
    let login = login::of(&command, "--creds", "--authfile", &target)?;
    let origin = login::of(&command, "--from-creds", "--authfile", &image)?;
    let channel = connect(&command.address).await?;
    let mut client = AdminClient::new(channel.clone());
    let request = PushImageRequest { image, target: target.clone(), login, origin };
    let push = Box::pin(client.push_image(request));
    let pushed = Box::pin(progress::watch(channel, "PushImage", &target, push)).await;
    let pushed = pushed.map_err(|s| refused(&s))?.into_inner();
    say(format_args!("pushed {}  {} sent\n", pushed.reference, super::images::bytes(pushed.sent)));
    Ok(())
}

pub(super) fn tag(args: Args) -> ExitCode {
    run("tag", TAG, args, &[], |command| {
        Box::pin(async move {
            let [image, tag] = command.operands.as_slice() else {
                return Err("expected the name of an image and another name".into());
            };
            let mut client = AdminClient::new(connect(&command.address).await?);
            let request = TagImageRequest { image: image.clone(), tag: tag.clone() };
            client.tag_image(request).await.map_err(|s| refused(&s)).map(drop)
        })
    })
}

pub(super) fn search(args: Args) -> ExitCode {
    let known = [Known::Switch("--tags"), Known::Value("--creds"), Known::Value("--authfile")];
    run("search", SEARCH, args, &known, |command| Box::pin(search_images(command)))
}

async fn search_images(command: Command) -> Result<(), String> {
    let [term] = command.operands.as_slice() else { return Err("expected one term".into()) };
    let tags = command.option("--tags").is_some();
    let login = login::of(&command, "--creds", "--authfile", term)?;
    let mut client = AdminClient::new(connect(&command.address).await?);
    let request = SearchImagesRequest { term: term.clone(), tags, login };
    let results = client.search_images(request).await.map_err(|s| refused(&s))?.into_inner().results;
    let mut text = String::new();
    if command.json {
        let one = |r: &crate::proto::admin::SearchResult| serde_json::json!({ "name": r.name, "description": r.description });
        let _ = writeln!(text, "{:#}", serde_json::Value::from(results.iter().map(one).collect::<Vec<_>>()));
    } else {
        let width = results.iter().map(|r| r.name.len()).max().unwrap_or(0);
        for result in &results {
            let line = format!("{:<width$}  {}", result.name, result.description);
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    say(text);
    Ok(())
}
