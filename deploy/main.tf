# The bucket, an identity that may touch one prefix of it, the registry for the image, and the service.
#
#   terraform init && terraform apply -var project=my-project -var bucket=my-bucket
#
# With -var image="" everything but the service is made; service.yaml then makes the service.

terraform {
  required_version = ">= 1.6"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.0, < 8.0"
    }
  }
}

variable "project" {
  description = "Project id."
  type        = string
}

variable "region" {
  description = "Region of the bucket and of the service. Keep them together: every upload and every cold page is a round trip between them."
  type        = string
  default     = "europe-west1"
}

variable "bucket" {
  description = "Name of the bucket, unique in the world."
  type        = string
}

variable "prefix" {
  description = "The databases lie under this prefix of the bucket."
  type        = string
  default     = "prod"
}

variable "image" {
  description = "Image of the app; empty makes everything but the service."
  type        = string
  default     = ""
}

variable "cpu_always" {
  description = "Bill by instance: CPU also between requests, so that durability=background uploads. Otherwise by request."
  type        = bool
  default     = false
}

variable "public" {
  description = "Whether everybody may call the service."
  type        = bool
  default     = true
}

variable "notify" {
  description = "Notification channels (projects/P/notificationChannels/N) of the alert on errors; none makes no alert."
  type        = list(string)
  default     = []
}

provider "google" {
  project = var.project
  region  = var.region
}

resource "google_project_service" "api" {
  for_each = toset([
    "artifactregistry.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "storage.googleapis.com",
  ])
  service            = each.value
  disable_on_destroy = false
}

resource "google_storage_bucket" "databases" {
  name     = var.bucket
  location = var.region

  # Rights come from IAM alone, and never from outside the project.
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # Deltas are replaced by larger ones all day. Kept for seven days after that (the default) each byte would be billed again;
  # time travel is sqlite-gcs's own (retention=).
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  # No lifecycle rule deletes objects: some old names are part of the proof that a late writer is stopped.
  # No retention policy either: the lease object is overwritten.

  # A bucket that still holds a database is not destroyed.
  force_destroy = false

  depends_on = [google_project_service.api]
}

resource "google_service_account" "app" {
  account_id   = "guestbook"
  display_name = "The guestbook: reads and writes gs://${var.bucket}/${var.prefix}/"
  depends_on   = [google_project_service.api]
}

# Read, write, overwrite, delete and list, under the prefix and nowhere else. Listing is a right on the bucket, so the
# condition looks at the prefix that is asked for.
resource "google_storage_bucket_iam_member" "app" {
  bucket = google_storage_bucket.databases.name
  role   = "roles/storage.objectUser"
  member = google_service_account.app.member

  condition {
    title       = "Only ${var.prefix}/"
    description = "Objects under the prefix, and lists of it."
    expression  = <<-EOT
      resource.name.startsWith("projects/_/buckets/${var.bucket}/objects/${var.prefix}/") ||
      api.getAttribute("storage.googleapis.com/objectListPrefix", "").startsWith("${var.prefix}/")
    EOT
  }
}

resource "google_artifact_registry_repository" "images" {
  repository_id = "guestbook"
  format        = "DOCKER"
  location      = var.region
  depends_on    = [google_project_service.api]
}

resource "google_cloud_run_v2_service" "app" {
  count               = var.image == "" ? 0 : 1
  name                = "guestbook"
  location            = var.region
  ingress             = "INGRESS_TRAFFIC_ALL"
  deletion_protection = false

  template {
    service_account                  = google_service_account.app.email
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    max_instance_request_concurrency = 80
    timeout                          = "30s"

    scaling {
      min_instance_count = 0
      max_instance_count = 1
    }

    containers {
      name  = "guestbook"
      image = var.image

      ports {
        name           = "http1"
        container_port = 8080
      }

      env {
        name  = "SQLITE_GCS_BUCKET"
        value = "gs://${google_storage_bucket.databases.name}/${var.prefix}"
      }
      env {
        name  = "GUESTBOOK_DB"
        value = "file:/tmp/guestbook.db?vfs=gcs&durability=commit&cache_size=192MB"
      }
      env {
        name  = "GOOGLE_CLOUD_PROJECT"
        value = var.project
      }

      # Memory against cache_size: see service.yaml.
      resources {
        limits = {
          cpu    = "1"
          memory = "512Mi"
        }
        cpu_idle          = !var.cpu_always
        startup_cpu_boost = true
      }

      startup_probe {
        period_seconds    = 1
        timeout_seconds   = 1
        failure_threshold = 30
        http_get {
          path = "/health"
          port = 8080
        }
      }

      liveness_probe {
        period_seconds    = 30
        timeout_seconds   = 5
        failure_threshold = 3
        http_get {
          path = "/livez"
          port = 8080
        }
      }
    }
  }

  depends_on = [google_storage_bucket_iam_member.app]
}

resource "google_cloud_run_v2_service_iam_member" "public" {
  count    = var.image != "" && var.public ? 1 : 0
  name     = google_cloud_run_v2_service.app[0].name
  location = var.region
  role     = "roles/run.invoker"
  member   = "allUsers"
}

# One line of severity ERROR is worth a look: the app logs one for each write that failed and for a stop that took too long.
resource "google_monitoring_alert_policy" "errors" {
  count                 = length(var.notify) > 0 ? 1 : 0
  display_name          = "Guestbook: errors in the log"
  combiner              = "OR"
  notification_channels = var.notify

  conditions {
    display_name = "A line of severity ERROR"
    condition_matched_log {
      filter = <<-EOT
        resource.type="cloud_run_revision" resource.labels.service_name="guestbook"
        (severity>=ERROR OR textPayload=~"^sqlite-gcs: error")
      EOT
    }
  }

  alert_strategy {
    notification_rate_limit {
      period = "3600s"
    }
  }
}

output "url" {
  description = "Where the guestbook is."
  value       = one(google_cloud_run_v2_service.app[*].uri)
}

output "repository" {
  description = "Push the image here."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}/guestbook"
}
