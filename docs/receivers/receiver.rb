# Receives Herald's callbacks with Ruby 3.0 or newer, WEBrick and SQLite (gem install webrick sqlite3, or Debian's
# ruby-webrick and ruby-sqlite3). What it knows is in an SQLite file.
#
#     HERALD_SECRETS=whsec_… PORT=9000 ruby receiver.rb

require "json"
require "openssl"
require "sqlite3"
require "webrick"

SECRETS = ENV.fetch("HERALD_SECRETS").split(/[\s,]+/).reject(&:empty?) # Several while one is being replaced.
KEYS = SECRETS.map { |text| text.start_with?("whsec_") ? text.delete_prefix("whsec_").unpack1("m0") : text }
SCHEME = ENV.fetch("HERALD_SCHEME", "standard") # "dojo" only if your endpoint has no webhook-signature.
MAX_BODY_BYTES = 65_536 # The largest event there is.
TOLERANCE_S = 300
# Anybody can sign with an empty key.
abort "HERALD_SECRETS: it has no secret, or one that is not whole" if KEYS.empty? || KEYS.any? { |key| key.bytesize < 16 }

# webhook-signature: base64 of HMAC-SHA256 over id.timestamp.body; one for each secret, with spaces between.
def standard_signature?(request, body)
  id, timestamp = request["webhook-id"], request["webhook-timestamp"].to_s
  return false unless timestamp.match?(/\A[0-9]{1,12}\z/) && (Time.now.to_i - timestamp.to_i).abs <= TOLERANCE_S

  given = request["webhook-signature"].to_s.split(" ")
  KEYS.any? do |key|
    expected = "v1," + [OpenSSL::HMAC.digest("SHA256", key, "#{id}.#{timestamp}.".b + body)].pack("m0")
    given.any? { |one| OpenSSL.secure_compare(one, expected) } # In constant time, unlike ==.
  end
end

# dojo-signature: HMAC-SHA256 over the body alone, keyed with the secret's text, in upper case: sha256=0A-1B-…
def dojo_signature?(request, body)
  SECRETS.any? do |secret|
    bytes = OpenSSL::HMAC.hexdigest("SHA256", secret, body).upcase.scan(/../)
    OpenSSL.secure_compare(request["dojo-signature"].to_s, "sha256=#{bytes.join("-")}")
  end
end

DB = SQLite3::Database.new(ENV.fetch("DATABASE", "receiver.sqlite"))
DB.busy_timeout = 10_000
DB.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at INTEGER NOT NULL)")
DB.execute("CREATE TABLE IF NOT EXISTS intents (id TEXT PRIMARY KEY, status TEXT NOT NULL, sequence TEXT NOT NULL)")
DB.execute("DELETE FROM seen WHERE at < ?", [Time.now.to_i - 40 * 86_400]) # Once a day is enough; keep 36 days.
GUARD = Mutex.new # One connection for all threads.

# Takes an event once, and keeps the newest status of its intent. One transaction: a crash leaves both or neither.
def store(event, sequence)
  intent, status = event["data"].values_at("paymentIntentId", "paymentStatus")
  result = "duplicate"
  GUARD.synchronize do
    DB.transaction(:immediate) do
      DB.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", [event["id"], Time.now.to_i])
      next if DB.changes.zero?

      DB.execute(<<~SQL, [intent, status, sequence]) # Compared as text.
        INSERT INTO intents VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE
        SET status = excluded.status, sequence = excluded.sequence WHERE excluded.sequence > intents.sequence
      SQL
      result = DB.changes.zero? ? "older" : "applied"
    end
  end
  result
end

# The status to answer with.
def receive(request)
  body = String.new
  # The bytes as they came, piece by piece, so that a large one is not in memory before it is refused.
  request.body do |part|
    body << part
    return 413 if body.bytesize > MAX_BODY_BYTES
  end
  id, sequence = request["webhook-id"], request["herald-sequence"]
  is_verified = SCHEME == "dojo" ? dojo_signature?(request, body) : standard_signature?(request, body)
  return 400 unless id && sequence && is_verified

  event = JSON.parse(body)
  return 400 if event["id"] != id # Dojo's scheme signs no header: an old body with a new id would pass as new.

  result = store(event, sequence)
  $stdout.write("#{id} #{event["data"]["paymentIntentId"]} #{event["data"]["paymentStatus"]} #{result}\n")
  204 # It is stored. Whatever takes long belongs into a queue or another thread.
end

class Receiver < WEBrick::HTTPServlet::AbstractServlet
  def do_POST(request, response)
    response.status = receive(request)
    response.keep_alive = false if response.status == 413 # The rest of the body is still on the line.
  end
end

$stdout.sync = true
log = WEBrick::Log.new($stderr, WEBrick::Log::WARN)
server = WEBrick::HTTPServer.new(BindAddress: "127.0.0.1", Port: Integer(ENV.fetch("PORT", "9000")), Logger: log, AccessLog: [])
server.mount("/", Receiver)
trap("TERM") { server.shutdown }
server.start
