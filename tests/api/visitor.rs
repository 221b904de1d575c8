//! Somebody with a browser that runs no scripts: it keeps cookies, follows nothing by itself, and sends the forms that pages have.

use std::collections::BTreeMap;

use reqwest::{header, redirect::Policy};

use crate::house::House;

pub struct Visitor {
    client: reqwest::Client,
    base: String,
    cookies: BTreeMap<String, String>,
}

/// What a page answered.
pub struct Seen {
    pub status: u16,
    pub headers: header::HeaderMap,
    pub html: String,
}

impl Seen {
    pub fn place(&self) -> &str {
        self.headers.get(header::LOCATION).map_or("", |place| place.to_str().unwrap())
    }

    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> String {
        let after = self.html.split_once(&format!(r#"name="{name}" value=""#)).map(|(_, after)| after);
        after.and_then(|after| after.split_once('"')).map(|(value, _)| value.to_owned()).unwrap_or_default()
    }
}

impl Visitor {
    pub fn new(house: &House) -> Self {
        Self::at(&house.url(""))
    }

    pub fn at(base: &str) -> Self {
        herald::tls::install_crypto_provider();
        let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
        Self { client, base: base.to_owned(), cookies: BTreeMap::new() }
    }

    /// The same browser at another process.
    pub fn moved_to(&self, base: &str) -> Self {
        Self { cookies: self.cookies.clone(), ..Self::at(base) }
    }

    pub async fn signed_in(house: &House, token: &str) -> Self {
        let mut visitor = Self::new(house);
        let seen = visitor.sign_in(token).await;
        assert_eq!(seen.status, 303, "{}", seen.html);
        visitor
    }

    pub async fn sign_in(&mut self, token: &str) -> Seen {
        let form_key = self.get("/console/login").await.field("form_key");
        self.send("/console/login", &[("form_key", &form_key), ("token", token), ("next", "/console")], &[]).await
    }

    pub async fn get(&mut self, path: &str) -> Seen {
        self.seen(self.client.get(format!("{}{path}", self.base))).await
    }

    /// As a page's own form would: with its key.
    pub async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Seen {
        let form_key = self.form_key().await;
        let mut all = vec![("form_key", form_key.as_str()), ("back", "/console/endpoints")];
        all.extend(fields);
        self.send(path, &all, &[]).await
    }

    pub async fn form_key(&mut self) -> String {
        // Every page has a form: the way out.
        self.get("/console/endpoints").await.field("form_key")
    }

    pub async fn send(&mut self, path: &str, fields: &[(&str, &str)], headers: &[(&str, &str)]) -> Seen {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let mut request = self.client.post(format!("{}{path}", self.base)).body(body);
        request = request.header("content-type", "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.seen(request).await
    }

    async fn seen(&mut self, request: reqwest::RequestBuilder) -> Seen {
        let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let answer = request.header("cookie", cookies.join("; ")).send().await.unwrap();
        for set in answer.headers().get_all(header::SET_COOKIE) {
            let (name, value) = set.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap();
            match value {
                "" => drop(self.cookies.remove(name)),
                value => drop(self.cookies.insert(name.to_owned(), value.to_owned())),
            }
        }
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Seen { status, headers, html: answer.text().await.unwrap() }
    }

    pub fn cookie(&self, name: &str) -> Option<&String> {
        self.cookies.get(name)
    }

    pub fn set_cookie(&mut self, name: &str, value: &str) {
        self.cookies.insert(name.to_owned(), value.to_owned());
    }
}
