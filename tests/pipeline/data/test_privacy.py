"""What counts as personal or secret in a text, and what only looks like it."""

import pytest

from tunewright.pipeline.data.privacy import SECRET_KINDS, find, masked

# Put together from parts, so that no scanner of repositories takes them for real keys.
GITHUB = "ghp_" + "x7Kq2mVb9RtLw4ZcYp1HnDf6JsGa3EuTo8Qi"
HUGGING_FACE = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNmPoIuYtRe"
OPENAI = "sk-proj-" + "T3qLm9ZxV7cBnR2kWp8YdHf5GsJa1QeU"
AMAZON = "AKIA" + "QX4ZLT7N2VBM6RWD"
WEB_TOKEN = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI4NDIxIiwibmFtZSI6Ikpv" + "In0.kP3xv9Rz1QyT7bLm2WcD"
KEY_BODY = "\nMIIEpAIBAAKCAQEA7bq9Kx2Vt4LmR8wYpZ1cHnDf6JsGa3EuTo8QiXv5BkNl0Mj\nq3W=\n"
PRIVATE_KEY = "-----BEGIN RSA PRIVATE KEY-----" + KEY_BODY + "-----END RSA PRIVATE KEY-----"

PERSONAL_OR_SECRET = {
    "an address": ("Write to jane.doe@uni-koeln.de, please.", "email", "jane.doe@uni-koeln.de"),
    "an address in Chinese": ("请联系zhang.wei@163.com咨询", "email", "zhang.wei@163.com"),
    "an address at the end of a sentence": ("Mail maria+news@correo.es.", "email", "maria+news@correo.es"),
    "an American number": ("Call 415-867-2391 today", "phone", "415-867-2391"),
    "an American number with brackets": ("(212) 736-4108 is hers", "phone", "(212) 736-4108"),
    "an international number": ("Tel.: +49 221 470 2847", "phone", "+49 221 470 2847"),
    "a Chinese mobile number": ("我的手机号是13912604857。", "phone", "13912604857"),
    "a national number after its word": ("téléphone : 06 12 83 47 95", "phone", "06 12 83 47 95"),
    "a card": ("I paid with 4539 1488 0343 6467.", "credit_card", "4539 1488 0343 6467"),
    "a card without spaces": ("卡号6212341111111111000无效,5425233430109903有效", "credit_card", "5425233430109903"),
    "an American Express card": ("card 3714 496353 98449", "credit_card", "3714 496353 98449"),
    "an IBAN": ("IBAN: DE75512108001245126199, danke", "iban", "DE75512108001245126199"),
    "an IBAN in groups before words": (
        "FR76 3000 6000 0112 3456 7890 189 BIC",
        "iban",
        "FR76 3000 6000 0112 3456 7890 189",
    ),
    "a Chinese resident's number": ("身份证号：11010519491231002X。", "national_id", "11010519491231002X"),
    "a social security number": ("SSN 536-22-8145", "national_id", "536-22-8145"),
    "a Brazilian CPF": ("CPF 529.982.247-25", "national_id", "529.982.247-25"),
    "an address of a machine": ("Log in at 91.198.174.192 first", "ip_address", "91.198.174.192"),
    "an IPv6 address": ("host 2a02:8109:9ac0:24b8:1c3d::7f2e is up", "ip_address", "2a02:8109:9ac0:24b8:1c3d::7f2e"),
    "GitHub's key": (f"token={GITHUB}", "api_key", GITHUB),
    "Hugging Face's key": (f"login('{HUGGING_FACE}')", "api_key", HUGGING_FACE),
    "OpenAI's key": (f'api_key="{OPENAI}"', "api_key", OPENAI),
    "Amazon's key": (f"{AMAZON}\n", "api_key", AMAZON),
    "a web token": (f"Cookie: {WEB_TOKEN};", "token", WEB_TOKEN),
    "a bearer token": ("Authorization: Bearer 9fK2xLq7Zt4Wm1Rb8Yc3Vd", "token", "9fK2xLq7Zt4Wm1Rb8Yc3Vd"),
    "a private key": (f"Keep it:\n{PRIVATE_KEY}\n", "private_key", PRIVATE_KEY),
    "a password in a URL": ("postgres://app:tr0ub4dor@db.acme.io/main", "password_in_url", "tr0ub4dor"),
}


@pytest.mark.parametrize(("text", "kind", "what"), PERSONAL_OR_SECRET.values(), ids=PERSONAL_OR_SECRET)
def test_what_is_personal_or_secret_is_found_where_it_stands(text: str, kind: str, what: str) -> None:
    found = find(text)
    assert [(entry.kind, text[entry.start : entry.end]) for entry in found] == [(kind, what)]
    assert masked(text, found) == text.replace(what, f"[{kind}]")


HARMLESS = {
    "example addresses": "user@example.com, john@example-domain.com, you@yourcompany.com, name@domain.com",
    "git over SSH": "git clone git@github.com:owner/name.git",
    "a file with a density": "logo@2x.png and icon@3x.jpg",
    "a decorator and a handle": "@app.route('/') by @someone, @user@mastodon.social",
    "a package with a version": "npm i lodash@4.17.21 react@18.2.0 next@alpha.js.14 vite@beta.rc2",
    "an invented number": "Call 555-0199, (212) 555-0123 or +1 415 555 0100",
    "dates and times": "2024-11-21 12:36:16, 21.11.2024, 1999-2003, 20241121123616",
    "local addresses": "127.0.0.1, 192.168.1.20, 10.0.0.7, 0.0.0.0, 255.255.255.0, 203.0.113.9, ::1, fe80::1",
    "resolvers": "nameserver 8.8.8.8 or 1.1.1.1",
    "versions": "Chrome 91.0.4472.124, version 52.18.30.44, v2.31.0.1, section 3.1.4.2",
    "names of C++ and Rust": "std::vector<abc::def> a::b::c::d; at 12:30:45:10",
    "an order": "Your order 415-867-2391 and tracking number 4539148803436467, 订单号13912604857",
    "an ISBN": "ISBN 978-3-16-148410-0, ISSN 2049-3630",
    "a made-up identity": "SSN 123-45-6789 or 078-05-1120, card 4111 1111 1111 1111",
    "a card with a wrong digit": "4539 1488 0343 6468",
    "a resident's number with a wrong digit": "110105194912310021",
    "an IBAN with a wrong digit": "DE75512108001245126198",
    "numbers of mathematics": "3.14159265358979 × 1000000000 = 16777216; [1, 2, 3, 4, 5, 6, 7, 8]; 0.123-0.456",
    "sums": "472547338\n+960397912423686\n1234567 + 7654321 = 8888888; 2 000 000 people; $4,539,148,803",
    "hexadecimal": "commit 573045b0d0635d209cc15c466578631e073eb750, id 550e8400-e29b-41d4-a716-446655440000",
    "placeholders of keys": "sk-your-api-key-here, hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, AKIAIOSFODNN7EXAMPLE",
    "a word like a key": "sk-learn, risk-adjusted-performance-measurement, hf_hub_download_with_retries_and_more",
    "placeholders of passwords": "https://user:password@host/x, redis://:${PASS}@cache, ftp://name:<secret>@files.org",
    "a key's frame alone": "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "Chinese prose": "急性肾损伤是指肾功能在数小时至数天内迅速下降，2024年共收治1200例，占比35.6%。",
    "nothing": "",
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_what_only_looks_personal_is_not_reported(text: str) -> None:
    assert [(entry.kind, text[entry.start : entry.end]) for entry in find(text)] == []


def test_several_findings_are_in_order_and_masked_together() -> None:
    text = f"Jo <jo.roe@posteo.de>, 415-867-2391, uses {GITHUB} and ftp://jo:kX82mq@files.posteo.de/x."
    found = find(text)
    assert [entry.kind for entry in found] == ["email", "phone", "api_key", "password_in_url"]
    assert (
        masked(text, found) == "Jo <[email]>, [phone], uses [api_key] and ftp://jo:[password_in_url]@files.posteo.de/x."
    )


def test_masking_only_secrets_leaves_addresses() -> None:
    text = f"jo.roe@posteo.de {OPENAI}"
    assert masked(text, [entry for entry in find(text) if entry.kind in SECRET_KINDS]) == "jo.roe@posteo.de [api_key]"


def test_a_masked_text_holds_nothing_more() -> None:
    text = "\n".join(sample for sample, _, _ in PERSONAL_OR_SECRET.values())
    assert find(masked(text, find(text))) == []
