<?php
// Receives Herald's callbacks with PHP 8.0 or newer and its SQLite (php-sqlite3). What it knows is in an SQLite file.
//
//     HERALD_SECRETS=whsec_… php -S 127.0.0.1:9000 receiver.php
//
// `php -S` is PHP's development server. In production, let your web server (php-fpm) run this file for the path.
declare(strict_types=1);

const MAX_BODY_BYTES = 65_536; // The largest event there is.
const TOLERANCE_S = 300;

// Several while one is being replaced.
$secrets = preg_split('/[\s,]+/', (string) getenv('HERALD_SECRETS'), -1, PREG_SPLIT_NO_EMPTY);

/** The key of webhook-signature: the base64 behind whsec_, if there is one. */
function key_of(string $secret): string
{
    $key = str_starts_with($secret, 'whsec_') ? (string) base64_decode(substr($secret, 6), true) : $secret;
    // Anybody can sign with an empty key.
    return strlen($key) >= 16 ? $key : throw new RuntimeException('HERALD_SECRETS: a secret is not whole');
}

/** webhook-signature: base64 of HMAC-SHA256 over id.timestamp.body; one for each secret, with spaces between. */
function has_standard_signature(array $keys, string $body): bool
{
    $id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
    $timestamp = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
    if (!preg_match('/^[0-9]{1,12}$/D', $timestamp) || abs(time() - (int) $timestamp) > TOLERANCE_S) {
        return false;
    }
    foreach ($keys as $key) {
        $expected = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$timestamp.$body", $key, true));
        foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $given) {
            if (hash_equals($expected, $given)) {
                return true;
            }
        }
    }
    return false;
}

/** dojo-signature: HMAC-SHA256 over the body alone, keyed with the secret's text, in upper case: sha256=0A-1B-… */
function has_dojo_signature(array $secrets, string $body): bool
{
    foreach ($secrets as $secret) {
        $bytes = str_split(strtoupper(hash_hmac('sha256', $body, $secret)), 2);
        if (hash_equals('sha256=' . implode('-', $bytes), $_SERVER['HTTP_DOJO_SIGNATURE'] ?? '')) {
            return true;
        }
    }
    return false;
}

/** Takes an event once, and keeps the newest status of its intent. One transaction: a crash leaves both or neither. */
function store(array $event, string $sequence): string
{
    $db = new PDO('sqlite:' . (getenv('DATABASE') ?: 'receiver.sqlite'), options: [PDO::ATTR_TIMEOUT => 10]);
    $db->exec('CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at INTEGER NOT NULL)'); // Keep them for 36 days.
    $db->exec('CREATE TABLE IF NOT EXISTS intents (id TEXT PRIMARY KEY, status TEXT NOT NULL, sequence TEXT NOT NULL)');
    $run = function (string $sql, array $values) use ($db): int {
        $statement = $db->prepare($sql);
        $statement->execute($values);
        return $statement->rowCount();
    };
    $db->beginTransaction();
    $result = 'duplicate';
    if ($run('INSERT OR IGNORE INTO seen VALUES (?, ?)', [$event['id'], time()]) === 1) {
        $changed = $run(
            'INSERT INTO intents VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET status = excluded.status, ' .
            'sequence = excluded.sequence WHERE excluded.sequence > intents.sequence', // Compared as text.
            [$event['data']['paymentIntentId'], $event['data']['paymentStatus'], $sequence],
        );
        $result = $changed === 1 ? 'applied' : 'older';
    }
    $db->commit();
    return $result;
}

/** The status to answer with. */
function receive(array $secrets): int
{
    // The bytes as they came. $_POST has only forms, and what json_encode makes of a parsed body has other bytes.
    $body = (string) file_get_contents('php://input', length: MAX_BODY_BYTES + 1);
    if (strlen($body) > MAX_BODY_BYTES) {
        return 413;
    }
    $keys = array_map('key_of', $secrets);
    // HERALD_SCHEME=dojo only if your endpoint has no webhook-signature.
    $is_dojo = getenv('HERALD_SCHEME') === 'dojo';
    $is_verified = $is_dojo ? has_dojo_signature($secrets, $body) : has_standard_signature($keys, $body);
    $id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
    $sequence = $_SERVER['HTTP_HERALD_SEQUENCE'] ?? '';
    if ($id === '' || $sequence === '' || !$is_verified) {
        return 400;
    }
    $event = json_decode($body, true, flags: JSON_THROW_ON_ERROR);
    if ($event['id'] !== $id) { // Dojo's scheme signs no header: an old body with a new id would pass as new.
        return 400;
    }
    $result = store($event, $sequence);
    $line = "$id {$event['data']['paymentIntentId']} {$event['data']['paymentStatus']} $result\n";
    file_put_contents('php://stdout', $line); // Of php -S; under php-fpm use error_log($line).
    return 204; // It is stored. Whatever takes long belongs into a queue or another process.
}

http_response_code(500); // What stands if something throws. Herald sends it again.
http_response_code(receive($secrets));
