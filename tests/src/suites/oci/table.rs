//! What the validation programs said of both runtimes, for a terminal and as a page.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::validation::{Texts, Verdict, Verdicts};
use crate::report::line;

/// Prints a line per program and one below it for each assertion that does not hold.
pub(super) fn print(berth: &Verdicts, crun: &Verdicts) {
    line(format_args!("        program                               berth ok/not/skip   crun ok/not/skip"));
    for (name, ours) in berth {
        let theirs = &crun[name];
        line(format_args!("        {name:<38} {:<19} {}", counts(ours, "/"), counts(theirs, "/")));
        for remark in remarks(ours, theirs) {
            line(format_args!("          {remark}"));
        }
    }
    for (programs, texts) in skips(berth, crun) {
        line(format_args!("        skipped in {programs}: {}", texts.join("; ")));
    }
}

/// The same as tables in Markdown, with the sums.
pub(super) fn markdown(berth: &Verdicts, crun: &Verdicts) -> String {
    let mut out = String::from(
        "| program | Berth: ok · not ok · skipped | crun: ok · not ok · skipped | what does not hold |\n|---|---|---|---|\n",
    );
    for (name, ours) in berth {
        let theirs = &crun[name];
        let remarks: Vec<String> = remarks(ours, theirs).into_iter().map(|text| escaped(&text)).collect();
        let (ours, theirs) = (counts(ours, " · "), counts(theirs, " · "));
        let _ = writeln!(out, "| `{name}` | {ours} | {theirs} | {} |", remarks.join("<br>"));
    }
    let (ours, theirs) = (total(berth), total(crun));
    let _ =
        writeln!(out, "| together | {ours} | {theirs} | |\n\n| programs | assertions they skip |\n|---|---|");
    for (programs, texts) in skips(berth, crun) {
        let _ = writeln!(out, "| {programs} | {} |", escaped(&texts.join("; ")));
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

fn sum(texts: &Texts) -> usize {
    texts.values().sum()
}

fn counts(verdict: &Verdict, between: &str) -> String {
    let numbers = [&verdict.ok, &verdict.not_ok, &verdict.skipped].map(|texts| sum(texts).to_string());
    numbers.join(between) + if verdict.failed.is_some() { ", ended early" } else { "" }
}

fn total(verdicts: &Verdicts) -> String {
    let of = |texts: fn(&Verdict) -> &Texts| verdicts.values().map(|v| sum(texts(v))).sum::<usize>();
    let early = verdicts.values().filter(|verdict| verdict.failed.is_some()).count();
    format!("{} · {} · {}; {early} ended early", of(|v| &v.ok), of(|v| &v.not_ok), of(|v| &v.skipped))
}

/// What one of the two does not hold.
fn remarks(ours: &Verdict, theirs: &Verdict) -> Vec<String> {
    let mut remarks = Vec::new();
    for (text, times) in &ours.not_ok {
        let who = if theirs.not_ok.contains_key(text) { "both" } else { "Berth alone" };
        remarks.push(format!("not ok ×{times}, {who}: {text}"));
    }
    for (text, times) in theirs.not_ok.iter().filter(|(text, _)| !ours.not_ok.contains_key(*text)) {
        remarks.push(format!("not ok ×{times}, crun alone: {text}"));
    }
    for (who, failed) in [("Berth", &ours.failed), ("crun", &theirs.failed)] {
        remarks.extend(failed.iter().map(|why| format!("{who} ended early: {why}")));
    }
    remarks
}

/// Programs, and on which runtime if not on both, with the assertions that just these skip.
fn skips(berth: &Verdicts, crun: &Verdicts) -> BTreeMap<String, Vec<String>> {
    let mut programs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, ours) in berth {
        let theirs = &crun[name];
        for text in ours.skipped.keys() {
            let alone = if theirs.skipped.contains_key(text) { "" } else { " (Berth alone)" };
            programs.entry(text).or_default().push(format!("{name}{alone}"));
        }
        for text in theirs.skipped.keys().filter(|text| !ours.skipped.contains_key(*text)) {
            programs.entry(text).or_default().push(format!("{name} (crun alone)"));
        }
    }
    let mut together: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (text, programs) in programs {
        together.entry(programs.join(", ")).or_default().push(text.to_owned());
    }
    together
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(not_ok: &[&str], skipped: &[&str], failed: Option<&str>) -> Verdict {
        let texts = |list: &[&str]| list.iter().map(|text| ((*text).to_owned(), 1)).collect();
        Verdict {
            ok: texts(&["fine"]),
            not_ok: texts(not_ok),
            skipped: texts(skipped),
            failed: failed.map(str::to_owned),
        }
    }

    #[test]
    fn every_assertion_that_does_not_hold_and_every_skip_is_named() {
        let berth = Verdicts::from([("kill".into(), verdict(&["a | b"], &["no such thing"], None))]);
        let crun = Verdicts::from([("kill".into(), verdict(&["c"], &[], Some("gone")))]);
        let page = markdown(&berth, &crun);
        for expected in [
            "| `kill` | 1 · 1 · 1 | 1 · 1 · 0, ended early |",
            "not ok ×1, Berth alone: a \\| b<br>not ok ×1, crun alone: c<br>crun ended early: gone",
            "| together | 1 · 1 · 1; 0 ended early | 1 · 1 · 0; 1 ended early | |",
            "| kill (Berth alone) | no such thing |",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
    }
}
