//! Rules over one Rust source, on its syntax tree.

use anyhow::{Context, Result, bail, ensure};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A function longer than `limit` lines breaks the rule.
pub(super) fn functions(text: &str, limit: usize) -> Result<()> {
    struct Lengths(Vec<(String, usize)>);
    impl Lengths {
        fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
            let lines = block.span().end().line + 1 - signature.span().start().line;
            self.0.push((signature.ident.to_string(), lines));
        }
    }
    impl<'ast> Visit<'ast> for Lengths {
        fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
            self.add(&item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
        fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
            self.add(&item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
        fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
            if let Some(block) = &item.default {
                self.add(&item.sig, block);
            }
            visit::visit_trait_item_fn(self, item);
        }
    }
    let mut lengths = Lengths(Vec::new());
    lengths.visit_file(&syn::parse_file(text)?);
    let long: Vec<_> = lengths.0.iter().filter(|(_, lines)| *lines > limit).collect();
    ensure!(long.is_empty(), "{long:?}");
    Ok(())
}

/// Unsafe blocks, functions and impls: only where `permitted`, and there with an argument of at least a few words.
pub(super) fn unsafe_code(text: &str, permitted: bool) -> Result<()> {
    struct Found(Vec<usize>);
    impl<'ast> Visit<'ast> for Found {
        fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
            self.0.push(block.span().start().line);
            visit::visit_expr_unsafe(self, block);
        }
        fn visit_signature(&mut self, signature: &'ast syn::Signature) {
            self.0.extend(signature.unsafety.map(|token| token.span.start().line));
            visit::visit_signature(self, signature);
        }
        fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
            self.0.extend(item.unsafety.map(|token| token.span.start().line));
            visit::visit_item_impl(self, item);
        }
    }
    let mut found = Found(Vec::new());
    found.visit_file(&syn::parse_file(text)?);
    ensure!(permitted || found.0.is_empty(), "unsafe in line {:?}", found.0);
    for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("// SAFETY:")) {
        let hollow =
            ["valid parameters", "valid pointer.", "this is safe"].iter().any(|words| line.contains(words));
        ensure!(!hollow, "a SAFETY comment that does not argue:{line}");
    }
    Ok(())
}

/// No path may begin with a crate of the wire.
pub(super) fn no_wire(text: &str, crates: &[&str]) -> Result<()> {
    struct Paths<'a>(&'a [&'a str], Vec<String>);
    impl Paths<'_> {
        fn check(&mut self, first: &syn::Ident) {
            let name = first.to_string().replace('_', "-");
            if self.0.contains(&name.as_str()) {
                self.1.push(name);
            }
        }
    }
    impl<'ast> Visit<'ast> for Paths<'_> {
        fn visit_path(&mut self, path: &'ast syn::Path) {
            if let Some(first) = path.segments.first().filter(|_| path.segments.len() > 1) {
                self.check(&first.ident);
            }
            visit::visit_path(self, path);
        }
        fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
            match &item.tree {
                syn::UseTree::Path(path) => self.check(&path.ident),
                syn::UseTree::Name(name) => self.check(&name.ident),
                _ => {}
            }
        }
    }
    let mut paths = Paths(crates, Vec::new());
    paths.visit_file(&syn::parse_file(text).context("parse")?);
    if let Some(name) = paths.1.first() {
        bail!("names {name}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_what_breaks_it_and_nothing_else() {
        let long = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(80));
        assert!(functions(&long, 80).is_err());
        assert!(functions("fn f() {\n    g();\n}\n", 80).is_ok());
        assert!(unsafe_code("fn f() { unsafe { g() } }", false).is_err());
        assert!(unsafe_code("unsafe impl Send for X {}", false).is_err());
        assert!(unsafe_code("fn f() { unsafe { g() } }", true).is_ok());
        assert!(unsafe_code("// SAFETY: valid parameters\nfn f() {}", true).is_err());
        assert!(no_wire("use tonic::Status;", &["tonic"]).is_err());
        assert!(no_wire("fn f() -> prost::Message {}", &["prost"]).is_err());
        assert!(no_wire("use crate::tonic_water;", &["tonic"]).is_ok());
    }
}
